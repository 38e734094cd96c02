"""The plot of ``layerwise_growth.py``: CPU seconds and memory by the number of layers, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 360, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 34, 44
STYLE = "font-family='sans-serif' font-size='12' fill='#333'"
Row = Mapping[str, Any]


def svg(rows: Sequence[Row]) -> str:
    """Return the picture."""
    panels = (("CPU seconds", "cpu_seconds"), ("own memory, MiB", "own_mib"))
    parts = [
        f"<g transform='translate({number * WIDTH} 0)'>{_panel(title, key, rows)}</g>"
        for number, (title, key) in enumerate(panels)
    ]
    size = f"width='{len(panels) * WIDTH}' height='{HEIGHT}'"
    head = f"<svg xmlns='http://www.w3.org/2000/svg' {size} {STYLE}>"
    return "\n".join([head, "<rect width='100%' height='100%' fill='white'/>", *parts, "</svg>\n"])


def _panel(title: str, key: str, rows: Sequence[Row]) -> str:
    x_top = max(row["layers"] for row in rows)
    y_step = _step(max(row[key] for row in rows))
    y_top = y_step * math.ceil(max(row[key] for row in rows) / y_step)

    def x(layers: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * layers / x_top, 1)

    def y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_top, 1)

    found = [_text(LEFT, TOP - 14, title, "start")]
    for value in range(0, int(y_top) + 1, int(y_step)):
        line = f"x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y(value)}' y2='{y(value)}'"
        found += [
            f"<line {line} stroke='#ddd'/>",
            _text(LEFT - 6, y(value) + 4, f"{value:,}", "end"),
        ]
    for row in rows:
        found.append(_text(x(row["layers"]), HEIGHT - BOTTOM + 18, str(row["layers"]), "middle"))
        found.append(f"<circle cx='{x(row['layers'])}' cy='{y(row[key])}' r='4' fill='#1f6fb2'/>")
    points = " ".join(f"{x(row['layers'])},{y(row[key])}" for row in rows)
    found.append(f"<polyline points='{points}' fill='none' stroke='#1f6fb2' stroke-width='2'/>")
    found.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "layers", "middle"))
    return "".join(found)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{text}</text>"


def _step(top: float) -> int:
    """Return a round distance of lines, so that there are three to six."""
    power = 10 ** math.floor(math.log10(max(top, 4) / 4))
    return int(max(1, next(power * n for n in (1, 2, 5, 10) if top / (power * n) <= 6)))
