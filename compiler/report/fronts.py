"""The Pareto front of a plan: what a budget would have bought at other sizes or times, by prediction."""

from __future__ import annotations

from dataclasses import dataclass

from qcompile.compiler.report.figures import number, optional
from qcompile.runtime.manifest import Manifest


@dataclass(frozen=True)
class Point:
    """A plan.

    Args:
        bytes: Of the file.
        damage: That its formats do together.
        milliseconds: Of a token or call; ``None`` where time did not count.
    """

    bytes: float
    damage: float
    milliseconds: float | None


@dataclass(frozen=True)
class Front:
    """Plans that no other beats.

    Args:
        points: The cheapest first.
        built: The plan of the bundle.
        timed: Whether times grow along it; otherwise bytes do.
    """

    points: tuple[Point, ...]
    built: Point
    timed: bool


def front(manifest: Manifest) -> Front | None:
    """Return the front that the build found; ``None`` without a budget, or of a plan that was read."""
    plan = manifest.plan
    points = tuple(_point(row) for row in plan.get("front", ()))
    if not points:
        return None
    return Front(points, _point(plan), all(p.milliseconds is not None for p in points))


def _point(row: object) -> Point:
    if not isinstance(row, dict):
        raise TypeError(f"{row!r} is no plan")
    size, damage = number(row["bytes"]), number(row["damage"])
    if size is None or damage is None:
        raise TypeError("a plan has no bytes or no damage")
    return Point(size, damage, optional(row, "milliseconds"))
