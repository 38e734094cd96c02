"""Pictures of a report: the front is the front, bars are counts, an image is the image."""

from __future__ import annotations

import base64
import struct
import zlib
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.report import pictures

SVG = "{http://www.w3.org/2000/svg}"
BLUE, ORANGE = pictures.COLOURS[:2]


def entries(points: list[tuple[int, float | None]]) -> list[Any]:
    return [
        SimpleNamespace(bytes=size, total_db=quality, label=f"n{k}")
        for k, (size, quality) in enumerate(points)
    ]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=3, max_size=9, unique=True)
)
def test_the_front_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    text = pictures.front("m", entries([(a, float(b)) for a, b in points]))
    found = {BLUE: set(), ORANGE: set()}
    for dot in ElementTree.fromstring(text).iter(f"{SVG}circle"):
        found[dot.attrib["fill"]].add(dot[0].text.partition(":")[0])
    beaten = {
        f"n{k}"
        for k, (size, quality) in enumerate(points)
        if any((a, -b) != (size, -quality) and a <= size and b >= quality for a, b in points)
    }
    assert found[ORANGE] == beaten
    assert found[BLUE] == {f"n{k}" for k in range(len(points))} - beaten


def test_few_bundles_have_no_front() -> None:
    assert pictures.front("m", entries([(1, 2.0), (2, 3.0), (3, None)])) == ""
    assert "m &lt;" in pictures.front("m <", entries([(1, 2.0), (2, 3.0), (3, 4.0)]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 48, 49, 200])
def test_an_image_is_the_image(channels: int, side: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (side, side + 1, channels), dtype=np.uint8)
    file = base64.b64decode(pictures.png(image).removeprefix("data:image/png;base64,"))
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    parts, at = {}, 8
    while at < len(file):
        (size,) = struct.unpack_from(">I", file, at)
        kind, data = file[at + 4 : at + 8], file[at + 8 : at + 8 + size]
        assert struct.unpack_from(">I", file, at + 8 + size) == (zlib.crc32(kind + data),)
        parts[kind], at = data, at + 12 + size
    width, height, bits, colour = struct.unpack_from(">IIBB", parts[b"IHDR"])
    assert max(width, height) <= 48
    assert (bits, colour) == (8, {1: 0, 3: 2}[channels])
    rows = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    step = -(-(side + 1) // 48)
    expected = image[::step, ::step]
    assert (rows[:, 1:].reshape(height, width, channels) == expected).all()


def test_bars_are_counts() -> None:
    layers: Any = [SimpleNamespace(output_db=v) for v in (10.0, 10.1, 10.2, 34.0, None)]
    root = ElementTree.fromstring(pictures.layer_errors(layers))
    bars = {bar[0].text: float(bar.attrib["height"]) for bar in root.iter(f"{SVG}rect")}
    assert {text.rpartition(": ")[2] for text in bars} == {"3", "0", "1"}
    assert bars["10 to 12: 3"] == pytest.approx(3 * bars["32 to 34: 1"], abs=0.2)
    assert pictures.layer_errors(layers[1:]) == ""
