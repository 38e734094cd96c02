"""What limits would have to be, against every plan there is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.driver.nearest import Limit, needed, tightest, together
from qcompile.compiler.ir.errors import BudgetError
from qcompile.passes.mixed_precision.allocation import Choice, Item, allocate, totals

COSTS = ("bytes", "damage", "milliseconds")
ROW = st.lists(st.tuples(*[st.integers(1, 50)] * 3), min_size=1, max_size=4)


def items(rows: list[list[tuple[int, ...]]]) -> list[Item]:
    return [
        Item(
            f"t{i}",
            tuple(
                Choice(f"c{j}", dict(zip(COSTS, map(float, costs), strict=True)))
                for j, costs in enumerate(row)
            ),
        )
        for i, row in enumerate(rows)
    ]


@given(st.lists(ROW, min_size=1, max_size=4), st.tuples(*[st.integers(1, 120)] * 3))
@settings(max_examples=15, deadline=None)
def test_the_least_with_the_others_kept(
    rows: list[list[tuple[int, ...]]], given_numbers: tuple[int, ...]
) -> None:
    found = items(rows)
    limits = [Limit(f"--{c}", n, c) for c, n in zip(COSTS, given_numbers, strict=True)]
    every = [totals(chosen) for chosen in itertools.product(*(item.choices for item in found))]

    for need, limit in zip(needed(found, limits), limits, strict=True):
        others = {o.cost: o.given for o in limits if o is not limit}
        sums = [s[limit.cost] for s in every if all(s[n] <= v for n, v in others.items())]
        assert need.least == (min(sums) if sums else None)
        if need.least is not None:  # what is said to be enough is enough
            allocate(found, "damage", {**tightest(limits), limit.cost: need.least})


def test_numbers_of_the_user() -> None:
    """A file of so many bytes more than its tensors; bits a weight; both rounded so that they are enough."""
    size = Limit("--max-size", 900, "bytes", offset=100, whole=True)
    bits = Limit("--target-bpw", 3.0, "bytes", 8 / 7000, 0.01)

    assert size.at == 800
    assert size.least(1234.0) == 1334
    assert bits.at == pytest.approx((3.0 - 0.01) * 7000 / 8)
    assert bits.least(3000.0) >= 3000 * 8 / 7000 + 0.01
    assert bits.least(3000.0) == pytest.approx(3000 * 8 / 7000 + 0.01, rel=1e-3)


def test_of_limits_of_one_sum_the_tightest_counts() -> None:
    limits = [Limit("--max-size", 50, "bytes"), Limit("--max-ram", 70, "bytes", offset=40)]
    needs = needed(items([[(60, 1, 1)]]), limits)

    assert tightest(limits) == {"bytes": 30}
    assert [need.least for need in needs] == [None, None]
    assert together(needs) == "no limit alone is enough: more than one has to give"
    with pytest.raises(BudgetError):
        allocate(items([[(60, 1, 1)]]), "damage", tightest(limits))
