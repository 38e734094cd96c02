"use strict";
const MISSING = "–";

function value(row, column, numeric) {
  const text = row.cells[column].textContent.trim();
  if (text === "" || text === MISSING) return null;
  if (!numeric) return text.toLowerCase();
  const found = text.replace(/,/g, "").match(/^[+-]?[\d.]+(e[+-]?\d+)?/i);
  return found ? Number(found[0]) : Infinity; // "equal": no error at all
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function sort(table, heading) {
  const column = heading.cellIndex;
  const numeric = heading.classList.contains("n");
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column, numeric), row]);
  const known = rows.filter(([key]) => key !== null);
  known.sort(([a], [b]) => (descending ? compare(b, a) : compare(a, b)));
  const missing = rows.filter(([key]) => key === null);
  table.tBodies[0].append(...known.concat(missing).map(([, row]) => row));
  for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

function search(input) {
  const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  input.parentNode.querySelector("output").value = `${shown} of ${rows.length}`;
}

function open() {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView();
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sort(button.closest("table"), button.closest("th"));
});
document.addEventListener("input", (event) => {
  if (event.target.matches("input[data-table]")) search(event.target);
});
addEventListener("hashchange", open);
open();
