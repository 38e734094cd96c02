"""The allocation against every possible one, and what it says where there is none."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import BudgetError
from qcompile.passes.mixed_precision.allocation import Choice, Item, allocate, allocations, totals

COST = st.integers(0, 1000)
SHARE = st.integers(0, 100).map(lambda percent: percent / 100)
CHOICES = st.lists(st.tuples(COST, COST, COST), min_size=1, max_size=4)


def items(costs: list[list[tuple[int, int, int]]]) -> list[Item]:
    return [
        Item(f"t{i}", tuple(Choice(f"c{j}", dict(zip(("bytes", "damage", "ms"), map(float, c), strict=True)))
                            for j, c in enumerate(row)))
        for i, row in enumerate(costs)
    ]  # fmt: skip


def best(found: list[Item], limits: dict[str, float]) -> float | None:
    """Return the least damage of all allocations within the limits."""
    sums = (totals(chosen) for chosen in itertools.product(*(item.choices for item in found)))
    return min(
        (s["damage"] for s in sums if all(s[n] <= v for n, v in limits.items())), default=None
    )


@given(st.lists(CHOICES, min_size=1, max_size=6), SHARE, SHARE)
@settings(max_examples=60, deadline=None)
def test_it_is_the_best_of_all(costs: list[list[tuple[int, int, int]]], a: float, b: float) -> None:
    found = items(costs)
    limits = {
        name: share * sum(max(c.costs[name] for c in item.choices) for item in found)
        for name, share in (("bytes", a), ("ms", b))
    }
    expected = best(found, limits)

    if expected is None:
        with pytest.raises(BudgetError):
            allocate(found, "damage", limits)
        return
    result = allocate(found, "damage", limits)
    assert result.totals["damage"] == pytest.approx(expected, abs=1e-6)
    assert all(result.totals[name] <= limit for name, limit in limits.items())


@given(st.lists(CHOICES, min_size=1, max_size=4), SHARE, st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_next_best(costs: list[list[tuple[int, int, int]]], share: float, count: int) -> None:
    """The first of all allocations in order of damage, choices left out that another equals or beats."""
    costs = [sorted({b: (b, d, m) for b, d, m in row}.values()) for row in costs]
    costs = [[c for i, c in enumerate(row) if all(c[1] < o[1] for o in row[:i])] for row in costs]
    found = items(costs)
    limit = share * sum(max(c.costs["bytes"] for c in item.choices) for item in found)
    sums = [totals(chosen) for chosen in itertools.product(*(item.choices for item in found))]
    expected = sorted(s["damage"] for s in sums if s["bytes"] <= limit)[:count]

    if not expected:
        with pytest.raises(BudgetError):
            allocations(found, "damage", {"bytes": limit}, count)
        return
    several = allocations(found, "damage", {"bytes": limit}, count)
    assert [a.totals["damage"] for a in several] == pytest.approx(expected, abs=1e-6)
    assert len({tuple(c.name for c in a.chosen.values()) for a in several}) == len(several)


def test_a_thousand_tensors_of_twenty_choices() -> None:
    """Proven optimal: the other way round the same sums are found."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(1000):
        size = float(draw.integers(1, 400)) * 1000
        rows = [(round(size * (2 + j / 2)), size * draw.random() * 2.0**-j, 0) for j in range(20)]
        found += [
            Item(
                f"t{i}",
                tuple(
                    Choice(f"c{j}", {"bytes": float(r[0]), "damage": r[1]})
                    for j, r in enumerate(rows)
                ),
            )
        ]
    limit = 1.05 * sum(item.choices[6].costs["bytes"] for item in found)

    start = time.perf_counter()
    least = allocate(found, "damage", {"bytes": limit})
    assert time.perf_counter() - start < 60
    smallest = allocate(found, "bytes", {"damage": least.totals["damage"]})
    assert smallest.totals["bytes"] == pytest.approx(least.totals["bytes"], rel=1e-6)
    again = allocate(found, "damage", {"bytes": limit})
    assert {n: c.name for n, c in again.chosen.items()} == {
        n: c.name for n, c in least.chosen.items()
    }


def test_a_limit_is_kept_to_the_byte() -> None:
    """Sums of gigabytes, a limit of one byte less than the better of two plans."""
    large = [
        Choice("large", {"bytes": 3e10 + 1, "damage": 1.0}),
        Choice("small", {"bytes": 2e10, "damage": 1.5}),
    ]
    found = [Item(f"t{i}", tuple(large)) for i in range(3)]

    result = allocate(found, "damage", {"bytes": 8e10 + 1})

    assert sorted(c.name for c in result.chosen.values()) == ["large", "small", "small"]


def test_each_limit_that_nothing_keeps_is_named() -> None:
    found = items([[(10, 5, 7), (20, 1, 9)]])

    with pytest.raises(
        BudgetError, match="bytes cannot be below 10, and 9 is the limit; ms cannot be below 7"
    ):
        allocate(found, "damage", {"bytes": 9, "ms": 6})
    with pytest.raises(
        BudgetError, match="no plan keeps bytes at most 15 and damage at most 2 together"
    ):
        allocate(found, "ms", {"bytes": 15, "damage": 2})


def test_of_equal_choices_the_first_name_is_taken() -> None:
    same = {"bytes": 1.0, "damage": 1.0}
    found = [Item("t", (Choice("b", same), Choice("a", same)))]

    assert allocate(found, "damage", {"bytes": 1}).chosen["t"].name == "a"
