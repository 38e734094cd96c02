"""What would have to be given for limits that nothing keeps: of each the least, with the others kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.errors import BudgetError
from qcompile.passes.mixed_precision.allocation import Allocation, Item, allocate

_DIGITS = 4


@dataclass(frozen=True)
class Limit:
    """A limit as the user gave it, and as a sum of costs: ``user = factor * sum + offset``.

    Args:
        option: ``--max-size``.
        given: The user's number.
        cost: Name of the sum.
        factor: See above.
        offset: See above.
        whole: Whether the user's number is an integer.
    """

    option: str
    given: float
    cost: str
    factor: float = 1.0
    offset: float = 0.0
    whole: bool = False

    @property
    def at(self) -> float:
        """The largest sum that keeps it."""
        return (self.given - self.offset) / self.factor

    def least(self, total: float) -> float:
        """Return the user's least number that a sum keeps, with few digits."""
        value = self.factor * total + self.offset
        if self.whole:
            return math.ceil(value)
        step: float = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS) if value > 0 else 1.0
        return math.ceil(value / step) * step

    def shown(self, value: float) -> str:
        """Return a number of the user's as text."""
        return f"{value:,.0f}" if self.whole else f"{value:.{_DIGITS}g}"


@dataclass(frozen=True)
class Need:
    """What a limit would have to be.

    Args:
        limit: Which.
        least: With all others kept; ``None`` where nothing is enough.
        found: What keeps it then.
    """

    limit: Limit
    least: float | None = None
    found: Allocation | None = None

    def as_json(self, plan: Callable[[Allocation], Any]) -> dict[str, Any]:
        """Return plain data, with the plan that keeps it then."""
        given, found = self.limit.given, self.found
        return {
            "limit": self.limit.option,
            "given": given,
            "least": self.least,
            "plan": None if found is None else plan(found),
        }

    def __str__(self) -> str:
        assert self.least is not None
        return f"{self.limit.option} would have to be {self.limit.shown(self.least)}"


def tightest(limits: Sequence[Limit]) -> dict[str, float]:
    """Return the largest sums that keep all limits."""
    found: dict[str, float] = {}
    for limit in limits:
        found[limit.cost] = min(limit.at, found.get(limit.cost, math.inf))
    return found


def needed(items: Sequence[Item], limits: Sequence[Limit]) -> list[Need]:
    """Return of each limit what it would have to be if the others were kept.

    Args:
        items: What is allocated.
        limits: That nothing keeps together.
    """
    found = []
    for limit in limits:
        others = tightest([other for other in limits if other is not limit])
        try:
            best = allocate(items, limit.cost, others)
        except BudgetError:
            found.append(Need(limit))
        else:
            found.append(Need(limit, limit.least(best.totals[limit.cost]), best))
    return found


def together(needs: Sequence[Need]) -> str:
    """Return what is said of limits that nothing keeps together: a clause."""
    possible = " or ".join(str(need) for need in needs if need.least is not None)
    if not possible:
        return "no limit alone is enough: more than one has to give"
    return f"with the other limits kept, {possible}" if len(needs) > 1 else possible
