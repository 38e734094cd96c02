"""Pictures of points on two axes as SVG, written by hand: no package, the same bytes each time."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 82, 24, 44, 52
COLOURS = ("#1f6fb2", "#c2571a", "#3a8f4d")
_LARGE = 1000
_DECADES = 3
"""Beyond so many, only powers of ten are marked."""


@dataclass(frozen=True)
class Look:
    """Sizes and colours; the default is that of a file of its own.

    Args:
        width: Of the picture.
        height: Of the picture.
        ink: Of texts.
        grid: Of lines.
        ground: Behind it; nothing for what the page has.
        colours: Of series.
    """

    width: int = WIDTH
    height: int = HEIGHT
    ink: str = "#333"
    grid: str = "#ddd"
    ground: str = "white"
    colours: tuple[str, ...] = COLOURS

    def across(self, share: float) -> float:
        """Return where a share of the x axis is."""
        return round(LEFT + (self.width - LEFT - RIGHT) * share, 1)

    def up(self, share: float) -> float:
        """Return where a share of the y axis is."""
        return round(self.height - BOTTOM - (self.height - TOP - BOTTOM) * share, 1)

    def picture(self, title: str, parts: Sequence[str]) -> str:
        """Return the whole of it, its title as what a screen reader says."""
        size = (
            f"width='{self.width}' height='{self.height}' viewBox='0 0 {self.width} {self.height}'"
        )
        said = f"role='img' aria-label='{html.escape(title)}'"
        style = f"font-family='sans-serif' font-size='12' fill='{self.ink}'"
        head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {said} {style}>"
        ground = f"<rect width='100%' height='100%' fill='{self.ground}'/>" if self.ground else ""
        heading = _text(LEFT, TOP - 20, title, "start")
        return "\n".join(filter(None, [head, ground, heading, *parts, "</svg>\n"]))


FILE_LOOK = Look()


@dataclass(frozen=True)
class Axis:
    """What an axis shows.

    Args:
        label: Beside it.
        values: All that must have a place.
        logarithmic: Whether equal distances are equal ratios; then all values are above 0.
    """

    label: str
    values: Sequence[float]
    logarithmic: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Where it begins and ends, as ``place`` measures it: a little beyond the values."""
        low, high = (self._scaled(f(self.values)) for f in (min, max))
        room = 0.04 * (high - low) or 0.5
        return low - room, high + room

    def place(self, value: float) -> float:
        """Return where a value is, from 0 to 1."""
        low, high = self.ends
        return (self._scaled(value) - low) / (high - low)

    def ticks(self) -> list[float]:
        """Return round values within the axis, three to ten of them in most cases."""
        low, high = self.ends
        if not self.logarithmic:
            step = _round_step((high - low) / 6)
            first = math.ceil(low / step)
            return [step * k for k in range(first, math.floor(high / step) + 1)]
        factors = (1,) if high - low > _DECADES else (1, 2, 5)
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [f * 10.0**power for power in powers for f in factors]
        return [value for value in found if low <= math.log10(value) <= high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Args:
        name: In the legend; nothing for none.
        points: ``(x, y)`` each.
        notes: What a browser shows beside a point; none, or one each.
        joined: Whether a line goes through them.
    """

    name: str
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    joined: bool = False


def svg(
    title: str,
    x: Axis,
    y: Axis,
    series: Sequence[Series],
    *,
    diagonal: bool = False,
    look: Look = FILE_LOOK,
) -> str:
    """Return a picture.

    Args:
        title: Above it.
        x: The axis to the right.
        y: The axis upwards.
        series: In the order in which they are drawn.
        diagonal: Whether a line marks where x and y are equal.
        look: Its sizes and colours.
    """  # fmt: skip
    parts = _grid(x, y, look)
    if diagonal:
        parts.append(_diagonal(x, y, look))
    for number, one in enumerate(series):
        colour = look.colours[number % len(look.colours)]
        parts += _marks(one, x, y, colour, look)
        if one.name:
            parts += _legend(number, one.name, colour, look)
    return look.picture(title, parts)


def histogram(
    title: str, label: str, edges: Sequence[float], counts: Sequence[int], look: Look
) -> str:
    """Return how many values lie between neighbouring edges.

    Args:
        title: Above it.
        label: Of the values.
        edges: Growing, one more than there are counts.
        counts: Of values between two edges.
        look: Its sizes and colours.
    """
    x, y = Axis(label, edges), Axis("", [0, max(counts)])
    ground = look.up(y.place(0))
    parts = _grid(x, y, look)
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        left, right, top = (
            look.across(x.place(low)),
            look.across(x.place(high)),
            look.up(y.place(count)),
        )
        place = f"x='{left}' y='{top}' width='{right - left - 1:.1f}' height='{ground - top:.1f}'"
        said = html.escape(f"{_number(low)} to {_number(high)}: {count:,}")
        parts.append(f"<rect {place} fill='{look.colours[0]}'><title>{said}</title></rect>")
    return look.picture(title, parts)


def page(title: str, picture: str, table: Sequence[Sequence[str]]) -> str:
    """Return a picture and a table below it as one HTML file.

    Args:
        title: Of the page.
        picture: As ``svg`` gives it.
        table: Rows; the first is the heading.
    """
    head, *rows = [[html.escape(cell) for cell in row] for row in table]
    cells = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows]
    style = "body{font-family:sans-serif}td,th{padding:2px 10px;text-align:right}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f"<html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>",
            f"<style>{style}</style>",
            picture,
            "<table>",
            *cells,
            "</table></html>\n",
        ]
    )


def _grid(x: Axis, y: Axis, look: Look) -> list[str]:
    found = []
    for value in x.ticks():
        at = look.across(x.place(value))
        found.append(_line(at, look.up(0), at, look.up(1), look.grid))
        found.append(_text(at, look.height - BOTTOM + 18, _number(value), "middle"))
    for value in y.ticks():
        at = look.up(y.place(value))
        found.append(_line(look.across(0), at, look.across(1), at, look.grid))
        found.append(_text(LEFT - 6, at + 4, _number(value), "end"))
    found.append(_text((LEFT + look.width - RIGHT) / 2, look.height - 12, x.label, "middle"))
    found.append(_text(LEFT, TOP - 4, y.label, "start"))
    return found


def _diagonal(x: Axis, y: Axis, look: Look) -> str:
    low = max(min(x.values), min(y.values))
    high = min(max(x.values), max(y.values))
    ends = [(look.across(x.place(value)), look.up(y.place(value))) for value in (low, high)]
    return _line(*ends[0], *ends[1], "#999")


def _marks(series: Series, x: Axis, y: Axis, colour: str, look: Look) -> list[str]:
    places = [(look.across(x.place(a)), look.up(y.place(b))) for a, b in series.points]
    found = []
    if series.joined:
        corners = " ".join(f"{a},{b}" for a, b in places)
        found.append(f"<polyline points='{corners}' fill='none' stroke='{colour}'/>")
    notes = series.notes or [""] * len(places)
    for (a, b), note in zip(places, notes, strict=True):
        said = f"<title>{html.escape(note)}</title>" if note else ""
        found.append(f"<circle cx='{a}' cy='{b}' r='4' fill='{colour}'>{said}</circle>")
    return found


def _legend(number: int, name: str, colour: str, look: Look) -> list[str]:
    at = TOP + 16 + 18 * number
    return [
        f"<circle cx='{look.width - RIGHT - 12}' cy='{at}' r='4' fill='{colour}'/>",
        _text(look.width - RIGHT - 22, at + 4, name, "end"),
    ]


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='{colour}'/>"


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{html.escape(text)}</text>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= _LARGE else f"{value:.6g}"


def _round_step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten, no less than a distance."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * f for f in (1, 2, 5, 10) if power * f >= least)
