"""Which choice each item gets: an exact multiple-choice knapsack under any number of limits.

Every item (a tensor, or tensors that must be alike) has choices with costs: bytes, damage, milliseconds.
One choice an item is wanted, such that the sum of one cost is least and the sums of others keep within their
limits. Solved as a mixed-integer program by HiGHS (Huangfu and Hall 2018, through SciPy) to proven
optimality; the same input gives the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.ir.errors import BudgetError

_GAP = 1e-9
"""Relative distance to the optimum at which the search ends."""
_ROUNDS = 8
_SCALE = 1e6
"""What a limit is in the solver, whose tolerance is absolute (1e-6 of HiGHS's own units)."""


@dataclass(frozen=True)
class Choice:
    """One thing that an item may be.

    Args:
        name: Of a format.
        costs: What it adds to each sum, by the sum's name; none is negative.
    """

    name: str
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Item:
    """What gets one choice.

    Args:
        name: Unique.
        choices: At least one; names are unique.
    """

    name: str
    choices: tuple[Choice, ...]

    def least(self, cost: str) -> float:
        """Return the least that it can add to a sum."""
        return min(choice.costs[cost] for choice in self.choices)


@dataclass(frozen=True)
class Allocation:
    """A choice for each item.

    Args:
        chosen: By the item's name.
        totals: Sums of all costs.
    """

    chosen: Mapping[str, Choice]
    totals: Mapping[str, float]


def allocate(items: Sequence[Item], minimize: str, limits: Mapping[str, float]) -> Allocation:
    """Return the best allocation.

    Args:
        items: In the order in which ties are broken.
        minimize: Name of the sum that is to be least.
        limits: Largest sums by name; a sum equal to its limit keeps it.

    Raises:
        BudgetError: No allocation keeps all limits; says by how much the nearest misses each one alone.
    """
    return allocations(items, minimize, limits, 1)[0]


def allocations(
    items: Sequence[Item], minimize: str, limits: Mapping[str, float], count: int
) -> list[Allocation]:
    """Return the best allocations, the best first: so many, or fewer if there are no more.

    Args:
        items: As ``allocate`` takes them.
        minimize: As ``allocate`` takes it.
        limits: As ``allocate`` takes them.
        count: At least 1.

    Raises:
        BudgetError: As ``allocate`` raises it.
    """
    items = [Item(i.name, _useful(i.choices, (minimize, *limits))) for i in items]
    _check_each_limit(items, limits)
    found: list[Allocation] = []
    while len(found) < count and (one := _allocated(items, minimize, limits, found)):
        found.append(one)
    if not found:
        raise BudgetError(f"no plan keeps {_listed(limits)} together, though one keeps each alone")
    return found


def _allocated(
    items: Sequence[Item],
    minimize: str,
    limits: Mapping[str, float],
    others: Sequence[Allocation],
) -> Allocation | None:
    """Return the best allocation that none of the others is; ``None`` if no further one keeps the limits."""
    tight = dict(limits)
    for _ in range(_ROUNDS):
        chosen = _solve(items, minimize, tight, others)
        if chosen is None:
            return None
        found = totals(chosen)
        over = {name: found[name] - limit for name, limit in limits.items() if found[name] > limit}
        if not over:
            names = (item.name for item in items)
            return Allocation(dict(zip(names, chosen, strict=True)), found)
        for name, by in over.items():  # the solver's tolerance
            tight[name] -= by
    return None


def totals(chosen: Sequence[Choice]) -> dict[str, float]:
    """Return the sums of all costs."""
    return {name: sum(choice.costs[name] for choice in chosen) for name in chosen[0].costs}


def _useful(choices: Sequence[Choice], costs: Sequence[str]) -> tuple[Choice, ...]:
    """Return the choices that no other one equals or beats in every cost."""
    found: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (*(c.costs[n] for n in costs), c.name)):
        if not any(all(f.costs[n] <= choice.costs[n] for n in costs) for f in found):
            found.append(choice)
    return tuple(found)


def _check_each_limit(items: Sequence[Item], limits: Mapping[str, float]) -> None:
    least = {name: sum(item.least(name) for item in items) for name in limits}
    if missed := {name: least[name] for name, limit in limits.items() if least[name] > limit}:
        raise BudgetError(
            "; ".join(
                f"{n} cannot be below {v:,.6g}, and {limits[n]:,.6g} is the limit"
                for n, v in missed.items()
            )
        )


def _solve(
    items: Sequence[Item],
    minimize: str,
    limits: Mapping[str, float],
    others: Sequence[Allocation],
) -> list[Choice] | None:
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    sizes = [len(item.choices) for item in items]
    owner = np.repeat(np.arange(len(items)), sizes)
    count = len(owner)
    one_each = csr_array((np.ones(count), (owner, np.arange(count))))
    rules = [LinearConstraint(one_each, 1, 1)]
    for name, limit in limits.items():
        costs = _costs(items, name)
        scale = (max(limit, costs.max()) or 1.0) / _SCALE
        rules.append(LinearConstraint(costs[None] / scale, -np.inf, limit / scale))
    for other in others:
        same = [c is other.chosen[i.name] for i in items for c in i.choices]
        rules.append(LinearConstraint(np.array([same], float), 0, len(items) - 1))
    objective = _costs(items, minimize)
    found = milp(
        objective / (objective.max() or 1.0),
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=rules,
        options={"mip_rel_gap": _GAP},
    )
    if found.x is None:
        return None
    starts = np.cumsum([0, *sizes])
    picks = (int(found.x[a:b].argmax()) for a, b in pairwise(starts))
    return [item.choices[pick] for item, pick in zip(items, picks, strict=True)]


def _costs(items: Sequence[Item], name: str) -> NDArray[np.float64]:
    return np.array([choice.costs[name] for item in items for choice in item.choices])


def _listed(limits: Mapping[str, float]) -> str:
    return " and ".join(f"{name} at most {limit:,.6g}" for name, limit in limits.items())
