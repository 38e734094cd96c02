"""A report as one HTML file: no network, no clock, readable from disk."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup
from numpy.typing import NDArray

import qcompile
from qcompile.compiler.driver.plan import MEASURES
from qcompile.compiler.report import figures, pictures
from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.differences import Figure
from qcompile.compiler.report.layers import ERRORS
from qcompile.compiler.report.reports import Report

MOST_BYTES = 2_000_000
_ROWS = (1000, 500, 200, 100, 50, 20, 10)
"""How many rows a table may have; the first that gives a small enough file is taken."""


class _Pictures:
    """Image samples as classes of a style sheet: bundles of one model share their samples."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def name(self, image: NDArray[Any]) -> str:
        """Return the class of an image."""
        address = pictures.png(image)
        return self._known.setdefault(address, f"i{len(self._known)}")

    def style(self) -> str:
        """Return the rules."""
        rules = (f".{name}{{background-image:url({url})}}" for url, name in self._known.items())
        return "\n".join(rules)


def page(report: Report) -> str:
    """Return the HTML, of fewer rows where it would be larger than ``MOST_BYTES``."""
    for limit in _ROWS:
        text = _render(report, limit)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _render(report: Report, limit: int) -> str:
    environment = _environment()
    style, script = (_resource(name) for name in ("style.css", "table.js"))
    images = _Pictures()
    for entry in report.entries:
        for image in entry.samples.pictures:
            images.name(image)
    return environment.get_template("report.html.j2").render(
        report=report,
        limit=limit,
        ids={entry.label: number for number, entry in enumerate(report.entries, 1)},
        fronts=[Markup(p) for p in _fronts(report)],
        plots_of=_plots,
        picture_class=images.name,
        pictures=Markup(images.style()),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(script, [style, images.style()]),
        version=qcompile.__version__,
        **_columns(report),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qcompile.compiler.report"),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    names = ("decibels", "whole", "short", "percent", "changed", "difference")
    environment.filters.update({name: getattr(figures, name) for name in names})
    environment.filters.update(figure_value=_figure_value, breakable=_breakable)
    environment.globals.update(missing=figures.MISSING, errors=ERRORS, measure_of=_measure)
    return environment


def _columns(report: Report) -> dict[str, Any]:
    """Return which columns the matrix has besides: those that some bundle fills."""
    filled = {
        "quality": any(entry.quality for entry in report.entries),
        "latency ms": any(entry.latency for entry in report.entries),
        "memory": any(entry.ram_bytes is not None for entry in report.entries),
    }
    names = zip(("has_quality", "has_latency", "has_ram"), filled.values(), strict=True)
    return {**dict(names), "optional_columns": [(n, "n") for n, known in filled.items() if known]}


def _fronts(report: Report) -> Iterator[str]:
    for model, entries in report.models.items():
        if picture := pictures.front(model, entries):
            yield picture


def _plots(entry: Entry) -> list[Markup]:
    found = [
        pictures.plan_front(entry.front, _measure(entry)),
        pictures.layer_errors(entry.layers),
        *map(pictures.output_errors, entry.samples.errors),
    ]
    return [Markup(picture) for picture in found if picture]


def _measure(entry: Entry) -> str:
    return MEASURES[entry.manifest.plan.get("measure", "kl")]


def _figure_value(figure: Figure, side: str) -> str:
    value = getattr(figure, side)
    return figures.MISSING if value is None else f"{value:,.{figure.digits}f}"


def _breakable(name: str) -> Markup:
    """Return a name, escaped, that may go on in the next line after a point or an underscore."""
    return Markup("<wbr>").join(re.split("(?<=[._/])", name))


def _policy(script: str, styles: list[str]) -> str:
    """Return a policy by which a browser asks for nothing and runs no other script than ours."""
    hashes = " ".join(_hash(style) for style in styles)
    return f"default-src 'none'; img-src data:; style-src {hashes}; script-src {_hash(script)}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _resource(name: str) -> str:
    folder = resources.files("qcompile.compiler.report") / "templates"
    return (folder / name).read_text(encoding="utf-8")
