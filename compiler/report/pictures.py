"""The pictures of a report: SVG in the colours of the page, PNG of image samples."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.driver.plot import Axis, Look, Series, histogram, svg
from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.fronts import Front, Point
from qcompile.compiler.report.layers import Layer
from qcompile.compiler.report.samples import Errors

COLOURS = ("var(--blue)", "var(--orange)", "var(--green)")
LARGE = Look(520, 320, "currentColor", "var(--line)", "", COLOURS)
SMALL = Look(360, 240, "currentColor", "var(--line)", "", COLOURS)
_FEWEST_BUNDLES, _FEWEST_LAYERS, _FEWEST_PLANS, _BINS = 3, 4, 2, 12
_MILLION = 10**6
_LARGEST_SIDE = 48
"""Pixels of a sample's picture: a report of many bundles stays small."""


def front(model: str, entries: Sequence[Entry]) -> str:
    """Return the sizes and errors of a model's bundles; those that no other beats are joined.

    Nothing for less than three bundles with a measured error.
    """
    known = [(e.bytes, e.total_db, e.label) for e in entries if e.total_db is not None]
    if len(known) < _FEWEST_BUNDLES:
        return ""
    points = sorted(known, key=lambda p: (p[0], -p[1], p[2]))
    best = [p for k, p in enumerate(points) if all(p[1] > other[1] for other in points[:k])]
    rest = [p for p in points if p not in best]
    x = Axis("bytes of the artifact", [p[0] for p in points])
    y = Axis("dB to PyTorch, more is better", [p[1] for p in points])
    series = [_series(best, True), _series(rest, False)]
    return svg(f"{model}: size and error", x, y, series, look=LARGE)


def plan_front(found: Front | None, measure: str) -> str:
    """Return what the best plans of other sizes or times would do, by prediction, and the one that was built.

    Args:
        found: The front; nothing is drawn without one, or where two of its plans do no damage.
        measure: What damage is.
    """
    if found is None:
        return ""
    points = [p for p in found.points if p.damage > 0]
    if len(points) < _FEWEST_PLANS:
        return ""
    built = [found.built] if found.built.damage > 0 else []
    x = Axis(_cost_label(found), [_cost(found, p) for p in (*points, *built)])
    y = Axis(f"{measure}, predicted", [p.damage for p in (*points, *built)], logarithmic=True)
    title = f"The best plan of each {'time' if found.timed else 'size'}"
    series = [_plans("best", found, points, joined=True), _plans("built", found, built)]
    return svg(title, x, y, series, look=SMALL)


def layer_errors(layers: Sequence[Layer]) -> str:
    """Return how many layers have which error at their output; nothing for a few layers."""
    values = [layer.output_db for layer in layers if layer.output_db is not None]
    if len(values) < _FEWEST_LAYERS or min(values) == max(values):
        return ""
    counts, edges = np.histogram(values, _BINS)
    label = "dB at the layer's output"
    return histogram("Layers by error", label, edges.tolist(), counts.tolist(), SMALL)


def output_errors(errors: Errors) -> str:
    """Return how far an output's numbers are from PyTorch's; nothing where all are equal."""
    if not errors.counts:
        return ""
    title = f"{errors.output}: artifact less PyTorch"
    return histogram(title, f"{errors.values:,} numbers", errors.edges, errors.counts, SMALL)


def png(image: NDArray[Any]) -> str:
    """Return an image as the text of a ``data:`` address.

    Args:
        image: ``[height, width, 1 or 3]``, bytes; large ones lose rows and columns.

    Source:
        https://www.w3.org/TR/png-3/
    """
    step = -(-max(image.shape[:2]) // _LARGEST_SIDE)
    pixels = image[::step, ::step]
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    file = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)
    return "data:image/png;base64," + base64.b64encode(file).decode()


def _cost_label(found: Front) -> str:
    return "ms, predicted" if found.timed else f"{_unit(found)[0]} of the file"


def _cost(found: Front, point: Point) -> float:
    if found.timed and point.milliseconds is not None:
        return point.milliseconds
    return point.bytes / _unit(found)[1]


def _unit(found: Front) -> tuple[str, float]:
    """Return a unit of bytes in which all points have short numbers."""
    return ("MB", 1e6) if found.points[-1].bytes >= _MILLION else ("kB", 1e3)


def _plans(name: str, found: Front, points: Sequence[Point], *, joined: bool = False) -> Series:
    notes = [
        f"{p.bytes:,.0f} bytes, {p.damage:.3g}"
        + (f", {p.milliseconds:.3g} ms" if p.milliseconds is not None else "")
        for p in points
    ]
    return Series(name, [(_cost(found, p), p.damage) for p in points], notes, joined)


def _series(points: Sequence[tuple[int, float, str]], joined: bool) -> Series:
    notes = [f"{label}: {size:,} bytes, {quality:.1f} dB" for size, quality, label in points]
    return Series("", [(size, quality) for size, quality, _ in points], notes, joined)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
