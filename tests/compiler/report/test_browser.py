"""The page in a real browser: Debian's Chromium, driven by Playwright, judged by axe-core."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.report.page import page
from qcompile.compiler.report.reports import make_report

pytestmark = pytest.mark.slow
Variant = Callable[..., Path]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMES = [f"blocks.{k}.conv.weight" for k in (2, 10, 1)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if program is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield found
        found.close()


def edit(manifest: dict[str, Any]) -> None:
    """Give the model layers with known bytes and decibels, one of them not measured."""
    row = manifest["layers"][0]
    figures = zip(NAMES, (900, 10_000, 70), (30.0, 9.5, None), strict=True)
    manifest["layers"] = [
        {**row, "name": name, "bytes": size, "weight_sqnr_db": quality}
        for name, size, quality in figures
    ]


def planned(manifest: dict[str, Any]) -> None:
    """Give it a plan with a front, whose picture is then on the page."""
    front = [{"bytes": 9**k, "damage": 0.3**k, "milliseconds": None} for k in range(3, 7)]
    manifest["plan"] = {"bytes": 800, "damage": 0.04, "measure": "kl", "front": front}


@pytest.fixture
def file(variant: Variant) -> Path:
    """A report of two bundles and their baseline."""
    variant("old/a.qc")
    report = make_report([variant("a.qc", edit), variant("b.qc", planned)], "old")
    path = Path("r.html").absolute()
    path.write_text(page(report))
    return path


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Any]:
    """The report, opened from disk; nothing may be asked for, and nothing may be complained of."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    tab, asked, said = context.new_page(), [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(file.as_uri())
    yield tab
    assert said == []
    assert [url for url in asked if not url.startswith("data:image/png")] == [file.as_uri()]
    context.close()


def cells(tab: Any, column: int) -> list[str]:
    return tab.eval_on_selector_all(
        f"#l1 tbody tr:not([hidden]) td:nth-child({column})", "all => all.map(e => e.textContent)"
    )


def test_sorted_and_searched(opened: Any) -> None:
    opened.click('#matrix a[href="#b1"]')
    assert opened.evaluate("document.getElementById('b1').open")
    heading = opened.locator("#l1 thead th", has_text="bytes").first
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert cells(opened, 4) == ["70", "900", "10,000"]  # as numbers: as texts 10,000 would be first
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert cells(opened, 4) == ["10,000", "900", "70"]
    quality = opened.locator("#l1 thead th", has_text="own dB").locator("button")
    for expected in (["9.5", "30.0", "–"], ["30.0", "9.5", "–"]):  # noqa: RUF001
        quality.click()
        assert cells(opened, 7) == expected  # what was not measured is last either way
    assert heading.get_attribute("aria-sort") == "none"

    box = opened.locator("input[data-table=l1]")
    box.fill("CONV blocks.1")
    assert sorted(cells(opened, 1)) == sorted([NAMES[1], NAMES[2]])
    assert opened.locator("input[data-table=l1] + output").text_content() == "2 of 3"
    box.fill("nothing like it")
    assert cells(opened, 1) == []
    box.fill("")
    assert len(cells(opened, 1)) == 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_anyone_can_read_it(browser: Any, file: Path, theme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(color_scheme=theme, bypass_csp=True)  # axe is a script too
    tab = context.new_page()
    tab.goto(file.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    found = axe.run(tab).response
    assert tab.locator("svg", has_text="The best plan of each size").count() == 1
    bad = [v for v in found["violations"] if v["impact"] in ("serious", "critical")]
    assert [(v["id"], v["nodes"][0]["html"]) for v in bad] == []
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (theme == "light")
    context.close()


def test_a_phone_scrolls_downwards_only(browser: Any, file: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    tab = context.new_page()
    tab.goto(file.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    context.close()
