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
from qcompile.compiler.report.layers import Layer
from qcompile.compiler.report.samples import Errors

COLOURS = ("var(--blue)", "var(--orange)", "var(--green)")
LARGE = Look(520, 320, "currentColor", "var(--line)", "", COLOURS)
SMALL = Look(360, 240, "currentColor", "var(--line)", "", COLOURS)
_FEWEST_BUNDLES, _FEWEST_LAYERS, _BINS = 3, 4, 12
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


def _series(points: Sequence[tuple[int, float, str]], joined: bool) -> Series:
    notes = [f"{label}: {size:,} bytes, {quality:.1f} dB" for size, quality, label in points]
    return Series("", [(size, quality) for size, quality, _ in points], notes, joined)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
