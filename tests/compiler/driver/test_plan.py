"""Plans: what is chosen, what is said of it, and what is said when there is none."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.targets.plans import TensorChoices, TokenTimes

NAMES = ("Q2_K", "Q4_K", "Q6_K", "Q8_0")
SHAPES = {"a": (64, 256), "b": (128, 512), "c": (32, 256)}
DAMAGES = {
    "a": dict(zip(NAMES, (0.3, 0.02, 0.001, 0.0001), strict=True)),
    "b": dict(zip(NAMES, (0.1, 0.01, 0.0008, 0.00002), strict=True)),
    "c": dict(zip(NAMES, (0.9, 0.2, 0.01, 0.003), strict=True)),
}
FIXED = 1000


@pytest.fixture
def problem() -> Problem:
    formats = tuple(BLOCK_FORMATS[name] for name in NAMES)
    choices = [
        TensorChoices(
            {f"{n}.weight": shape}, (n,), formats, tuple(f.storage_bytes(shape) for f in formats)
        )
        for n, shape in SHAPES.items()
    ]
    elements = sum(rows * columns for rows, columns in SHAPES.values()) + 10
    return Problem(choices, DAMAGES, FIXED, elements, 320)


def every_plan(problem: Problem) -> list[tuple[int, float]]:
    """Return bytes of the file and damage of every possible plan."""
    rows = [
        [(size, DAMAGES[c.sources[0]][f.name]) for f, size in zip(c.formats, c.bytes, strict=True)]
        for c in problem.choices
    ]
    return [(FIXED + sum(s for s, _ in p), sum(d for _, d in p)) for p in itertools.product(*rows)]


@pytest.mark.parametrize("size", [35_000, 50_000, 70_000, 100_000])
def test_the_best_that_fits(problem: Problem, size: int) -> None:
    plan = problem.solve(Budget(max_size=size))

    assert plan.bytes is not None
    assert plan.bytes <= size
    assert plan.damage == pytest.approx(min(d for b, d in every_plan(problem) if b <= size))


@pytest.mark.parametrize("kl", [0.3, 0.05, 0.01])
def test_the_smallest_that_is_good_enough(problem: Problem, kl: float) -> None:
    plan = problem.solve(Budget(max_kl=kl))

    assert plan.damage is not None
    assert plan.damage <= kl
    assert plan.bytes == min(b for b, d in every_plan(problem) if d <= kl)


def test_both_limits_and_a_goal(problem: Problem) -> None:
    budget = Budget(max_size=70_000, max_kl=0.05)
    possible = [(b, d) for b, d in every_plan(problem) if b <= 70_000 and d <= 0.05]

    assert problem.solve(budget).damage == pytest.approx(min(d for _, d in possible))
    assert problem.solve(replace(budget, optimize="size")).bytes == min(b for b, _ in possible)


def test_bits_per_weight_count_everything(problem: Problem) -> None:
    plan = problem.solve(Budget(target_bpw=5.0))

    stored = sum(
        BLOCK_FORMATS[plan.types[f"{n}.weight"]].storage_bytes(s) for n, s in SHAPES.items()
    )
    assert plan.bits_per_weight == pytest.approx((8 * stored + 320) / problem.elements, abs=1e-4)
    assert plan.bits_per_weight <= 5.0
    assert plan.bytes == stored + FIXED


def test_bits_that_are_met_exactly_are_met(problem: Problem) -> None:
    for plan in problem.front(12):
        assert plan.bytes is not None
        exact = (8 * (plan.bytes - FIXED) + 320) / problem.elements
        again = problem.solve(Budget(target_bpw=exact))
        assert again.bytes == plan.bytes
        assert again.bits_per_weight is not None
        assert exact - 1e-6 <= again.bits_per_weight <= exact


def test_predictions_are_corrected_by_what_was_measured(problem: Problem) -> None:
    """A plan that measured twice what it predicted: now half of the limit is allowed."""
    assert problem.solve(Budget(max_kl=0.05), 2.0) == problem.solve(Budget(max_kl=0.025))


def test_rows_say_what_else_was_possible(problem: Problem) -> None:
    plan = problem.solve(Budget(max_size=60_000))

    assert [row.tensor for row in plan.rows] == ["a.weight", "b.weight", "c.weight"]
    for row, name in zip(plan.rows, SHAPES, strict=True):
        at = NAMES.index(row.format)
        assert (row.bytes, row.damage) == (
            BLOCK_FORMATS[row.format].storage_bytes(SHAPES[name]),
            DAMAGES[name][row.format],
        )
        for other, step in ((row.better, 1), (row.cheaper, -1)):
            if not 0 <= at + step < len(NAMES):
                assert other is None
                continue
            wanted = NAMES[at + step]
            assert other is not None
            assert other["format"] == wanted
            assert other["damage"] == pytest.approx(DAMAGES[name][wanted] - row.damage)


def test_impossible_limits_say_what_comes_nearest(problem: Problem) -> None:
    smallest = min(b for b, _ in every_plan(problem))
    with pytest.raises(BudgetError, match=f"the smallest file is {smallest:,} bytes"):
        problem.solve(Budget(max_size=smallest - 1))
    with pytest.raises(
        BudgetError, match=r"the least KL divergence about 0\.00312 at [0-9,]+ bytes"
    ):
        problem.solve(Budget(max_kl=0.001))
    plans = every_plan(problem)
    needed = min(b for b, d in plans if d <= 0.004)
    least = min(d for b, d in plans if b <= 40_000)
    with pytest.raises(BudgetError) as caught:
        problem.solve(Budget(max_size=40_000, max_kl=0.004))
    assert f"--max-size would have to be {needed:,}" in str(caught.value)
    found = {row["limit"]: row for row in caught.value.nearest}
    assert found["--max-size"]["least"] == found["--max-size"]["plan"]["bytes"] == needed
    assert least <= found["--max-kl"]["least"] <= least * 1.001
    assert found["--max-kl"]["plan"]["bytes"] <= 40_000


def timed(problem: Problem) -> Problem:
    """Times by which the smaller format is not always the faster one."""
    factors = dict(zip(NAMES, (3.0, 1.0, 2.0, 1.5), strict=True))
    of = {
        c.name: {
            f.name: factors[f.name] * size / 1e4 for f, size in zip(c.formats, c.bytes, strict=True)
        }
        for c in problem.choices
    }
    return replace(problem, times=TokenTimes(of, 0.5, modelled=True), beside=1_000_000)


def test_memory_is_what_the_file_takes_and_the_rest(problem: Problem) -> None:
    plan = timed(problem).solve(Budget(max_ram=1_060_000))

    assert plan.ram == (plan.bytes or 0) + 1_000_000
    assert plan.types == problem.solve(Budget(max_size=60_000)).types
    with pytest.raises(BudgetError, match="1,000,000 bytes of memory are needed besides the file"):
        timed(problem).solve(Budget(max_ram=1_000_000))


@pytest.mark.parametrize("limit", [5.0, 8.0, 12.0])
def test_a_limit_of_time(problem: Problem, limit: float) -> None:
    known = timed(problem)
    assert known.times is not None
    of = known.times.of
    rows = [[(of[f"{n}.weight"][kind], DAMAGES[n][kind]) for kind in NAMES] for n in SHAPES]
    sums = [(0.5 + sum(t for t, _ in p), sum(d for _, d in p)) for p in itertools.product(*rows)]
    possible = [d for t, d in sums if t <= limit]
    if not possible:
        fastest = min(t for t, _ in sums)
        with pytest.raises(BudgetError, match=f"the least time about {fastest:.3g} ms"):
            known.solve(Budget(max_latency=limit))
        return
    plan = known.solve(Budget(max_latency=limit))
    fast = known.solve(Budget(max_kl=0.05, max_latency=limit, optimize="latency"))

    assert plan.damage == pytest.approx(min(possible))
    assert plan.milliseconds == pytest.approx(known.milliseconds(plan.types))
    assert fast.milliseconds == pytest.approx(min(t for t, d in sums if d <= 0.05))


def test_the_front_is_not_beaten(problem: Problem) -> None:
    plans = problem.front(6)

    assert [p.bytes for p in plans] == sorted({p.bytes for p in plans})
    for plan in plans:
        assert plan.damage == pytest.approx(
            min(d for b, d in every_plan(problem) if b <= plan.bytes)
        )


def test_a_plan_is_saved_and_read(problem: Problem, tmp_path: Path) -> None:
    plan, file = problem.solve(Budget(max_size=60_000)), tmp_path / "plan.json"
    plan.save(file)

    assert Plan.read(file).types == plan.types
    for text in ("", "[]", '{"schema": 1}', "{"):
        file.write_text(text)
        with pytest.raises(TargetError, match="is no plan"):
            Plan.read(file)
    file.write_text(json.dumps({"schema": 99, "types": {}}))
    with pytest.raises(TargetError, match="schema 99"):
        Plan.read(file)


def test_limits_that_mean_nothing() -> None:
    with pytest.raises(
        TargetError,
        match=r"--max-size 0 is no size; --target-bpw 17 .*; --max-kl -1 is not above 0",
    ):
        Budget(max_size=0, target_bpw=17, max_kl=-1).check()
    with pytest.raises(TargetError, match="--optimize size has no limit to keep"):
        Budget(optimize="size").check()


def test_the_front_reaches_both_ends(problem: Problem) -> None:
    plans = problem.front(16)

    assert plans[0].bytes == min(size for size, _ in every_plan(problem))
    assert plans[-1].damage == pytest.approx(min(damage for _, damage in every_plan(problem)))


def test_a_cap_on_damage(problem: Problem) -> None:
    plan = problem.solve(Budget(max_size=100_000, optimize="size"), cap=0.05)

    assert plan.bytes == min(b for b, d in every_plan(problem) if d <= 0.05)
