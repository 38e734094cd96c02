"""Pictures: well-formed, every point at its place, ticks at round values."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.driver.plot import HEIGHT, WIDTH, Axis, Series, page, svg

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [(2e6, 0.2), (4e6, 0.003), (8e6, 1e-6)]


def picture() -> ElementTree.Element:
    x = Axis("bytes", [a for a, _ in POINTS])
    y = Axis("nats", [b for _, b in POINTS], logarithmic=True)
    notes = ["<a> & b", "", "c"]
    return ElementTree.fromstring(svg("model <x>", x, y, [Series("plans", POINTS, notes, True)]))


def test_points_lie_where_their_values_are() -> None:
    """Across as the bytes are, upwards as the logarithms are."""
    dots = [c for c in picture().iter(f"{SVG}circle") if c.get("r") == "4"][: len(POINTS)]
    places = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in dots]
    (x0, y0), (x1, y1), (x2, y2) = places

    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    assert (x2 - x0) / (x1 - x0) == pytest.approx(3, rel=0.01)
    ratios = [math.log(b / a) for (_, a), (_, b) in pairwise(POINTS)]
    assert (y2 - y1) / (y1 - y0) == pytest.approx(ratios[1] / ratios[0], rel=0.01)
    assert y2 > y1 > y0  # less is lower, and SVG counts downwards


def test_what_is_written_in_it() -> None:
    texts = {t.text for t in picture().iter(f"{SVG}text")}

    assert {"bytes", "nats", "model <x>", "plans", "4,000,000", "0.01"} <= texts
    assert [t.text for t in picture().iter(f"{SVG}title")] == ["<a> & b", "c"]


def test_a_page_has_the_picture_and_the_table() -> None:
    found = page("m & n", "<svg/>", [["bytes", "formats"], ["1,000", "2 x <Q4_K>"]])

    assert "<svg/>" in found
    assert "<title>m &amp; n</title>" in found
    assert "<tr><th>bytes</th><th>formats</th></tr>" in found
    assert "<td>2 x &lt;Q4_K&gt;</td>" in found


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=5), st.booleans())
@settings(max_examples=15, deadline=None)
def test_axes_hold_all_values_and_have_ticks(values: list[float], logarithmic: bool) -> None:
    axis = Axis("", values, logarithmic)
    places = [axis.place(value) for value in (*values, *axis.ticks())]

    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    assert len(axis.ticks()) <= 16
