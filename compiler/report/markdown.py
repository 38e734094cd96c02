"""A report as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.differences import Difference
from qcompile.compiler.report.figures import changed, decibels, difference, short, whole
from qcompile.compiler.report.findings import Finding
from qcompile.compiler.report.reports import Report

MOST_FINDINGS = 30
_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;", "#": "&#35;"}
_TEXTS = ("bundle", "target", "format", "gates")
_SIGNS = {"error": "❌", "warning": "⚠️", "note": "ℹ️"}  # noqa: RUF001


def markdown(report: Report) -> str:
    """Return the summary."""
    blocks = [f"## qcompile: {report.summary}", _table(*_matrix(report))]
    if report.compared:
        blocks += ["### Since the baseline", *_changes(report)]
    if shown := [_finding(finding) for finding in report.findings[:MOST_FINDINGS]]:
        blocks += ["### Worth a look", "\n".join(shown)]
    if (left := len(report.findings) - MOST_FINDINGS) > 0:
        blocks.append(f"… and {left} more; the report has them all.")
    return "\n\n".join(blocks) + "\n"


def escaped(value: str) -> str:
    """Return a text that Markdown shows as it is: no markup, no HTML, nobody is mentioned."""
    plain = "".join(_HTML.get(c, c) for c in _SPECIAL.sub(r"\\\1", value))
    return plain.replace("://", ":&#47;&#47;")


def _matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """Return the heading and a row a bundle; columns that no bundle fills are left out."""
    metrics = sorted({q.name for entry in report.entries for q in entry.quality})
    heading = ["bundle", "target", "format", "bytes", "bits a weight", "SQNR dB"]
    heading += [*map(escaped, metrics), "latency", "gates"]
    rows = [_row(entry, metrics) for entry in report.entries]
    kept = [k for k in range(len(heading)) if any(row[k] for row in rows)]
    return [heading[k] for k in kept], [[row[k] for k in kept] for row in rows]


def _row(entry: Entry, metrics: Sequence[str]) -> list[str]:
    _, target, format, precision = entry.identity
    values = {q.name: f"{q.after:.2f} ({q.after - q.before:+.2f})" for q in entry.quality}
    failed = [gate.name for gate in entry.gates if not gate.passed]
    return [
        escaped(entry.label), escaped(target), escaped(f"{format} {precision}"), whole(entry.bytes),
        "" if entry.bits is None else f"{entry.bits:.2f}",
        "equal" if entry.total_db is None else decibels(entry.total_db),
        *(values.get(name, "") for name in metrics),
        f"{short(entry.latency.ms)} {entry.latency.unit}" if entry.latency else "",
        "✅" if not failed else f"❌ {escaped(', '.join(failed))}",
    ]  # fmt: skip


def _changes(report: Report) -> list[str]:
    blocks = []
    if report.differences:
        heading = ["bundle", "bytes", "SQNR dB", "formats changed", "layers worse"]
        blocks.append(_table(heading, [_change(found) for found in report.differences]))
    for name, labels in (("New", report.added), ("Gone", report.removed)):
        if labels:
            blocks.append(f"{name}: {', '.join(map(escaped, labels))}")
    return blocks


def _change(found: Difference) -> list[str]:
    quality = difference(found.before.total_db, found.after.total_db)
    return [
        escaped(found.after.label), changed(found.after.bytes - found.before.bytes),
        changed(quality, digits=1), str(sum(row.formats is not None for row in found.changed)),
        str(sum(row.worse for row in found.changed)),
    ]  # fmt: skip


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---" if name in _TEXTS else "---:" for name in heading]
    lines = [heading, marks, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _finding(finding: Finding) -> str:
    return (
        f"- {_SIGNS[finding.rule.level]} **{escaped(finding.bundle)}**: {escaped(finding.message)}"
    )
