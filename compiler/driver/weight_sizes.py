"""Bytes of artifacts with kernels in them, which no sum over weights gives: plans are compiled to know them.

Layers of one shape share a kernel while their weights share a format, so that a plan may take more code than
its formats do where all weights have them. A plan is written with its weights rounded in haste, for codes
have as many bytes whatever they are; what it takes besides its weights is learned, and the next is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qcompile.compiler.driver import weight_plans
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.driver.weight_damages import some_samples
from qcompile.compiler.driver.weight_trials import solved
from qcompile.compiler.ir.errors import BudgetError
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.order import Recipe

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

PLANS = 6
"""That are compiled before one is taken."""
STEP = 0.005
"""Of a limit: nearer to it no plan is looked for."""


@dataclass(frozen=True)
class Sized:
    """A plan with its measured bytes, and the problem whose predictions give them."""

    problem: Problem
    plan: Plan


@dataclass
class _Search:
    """Looks for the rest, beside the weights, whose best plan nearly fills a limit.

    Args:
        limit: Bytes.
        low: The largest rest whose plan was too large.
        high: The smallest whose plan fits, or that leaves no plan.
    """

    limit: int
    low: int | None = None
    high: int | None = None

    def learn(self, rest: int, found: Sized | None) -> None:
        """Take over what the plan for a rest was."""
        if found is None or _bytes(found) <= self.limit:
            self.high = rest
        else:
            self.low = rest

    def is_near(self, found: Sized) -> bool:
        """Return whether a plan nearly fills the limit."""
        return (1 - STEP) * self.limit < _bytes(found) <= self.limit

    def next(self, own: int) -> int | None:
        """Return the rest to try: that of the last plan's artifact, or one between; ``None`` at the end."""
        if (self.low is None or self.low < own) and (self.high is None or own < self.high):
            return own
        if self.low is None or self.high is None or self.high - self.low < STEP * self.limit:
            return None
        return (self.low + self.high) // 2


def settled(
    work: Build, problem: Problem, cap: float | None = None, first: Plan | None = None
) -> Sized:
    """Return the best plan, of those that were compiled, whose artifact keeps ``--max-size``.

    Args:
        work: With its samples.
        problem: Whose smallest plan keeps the size.
        cap: Damage at most, as predicted.
        first: The plan to begin with.

    Raises:
        BudgetError: None of them keeps all limits.
    """
    limit = work.options.budget.max_size
    found = measured(work, problem, first or solved(work, problem, cap))
    if limit is None:
        return found
    known = [found, *_searched(work, problem, found, cap, _Search(limit))]
    least = smallest(work, problem)
    if cap is None or _damage(least) <= cap:
        known.append(least)
    if not (fitting := [one for one in known if _bytes(one) <= limit]):
        raise BudgetError(
            f"no plan keeps --max-size {limit:,} and the limits of quality; the nearest has "
            f"{min(map(_bytes, known)):,} bytes"
        )
    value = _bytes if work.options.budget.goal == "size" else _damage
    return min(fitting, key=value)


def _searched(
    work: Build, problem: Problem, found: Sized, cap: float | None, search: _Search
) -> list[Sized]:
    """Return the plans that are compiled after the first: the best for rests nearer to the limit."""
    others: list[Sized] = []
    search.learn(problem.fixed, found)
    for _ in range(PLANS):
        if search.is_near(found) or (rest := search.next(found.problem.fixed)) is None:
            break
        one = _best(work, replace(problem, fixed=rest), cap)
        search.learn(rest, one)
        if one is not None:
            others.append(found := one)
    return others


def _best(work: Build, problem: Problem, cap: float | None) -> Sized | None:
    try:
        plan = solved(work, problem, cap)
    except BudgetError:
        return None
    return measured(work, problem, plan)


def smallest(work: Build, problem: Problem) -> Sized:
    """Return the plan of the fewest bytes; its damage need not be known."""
    return measured(work, problem, problem.solve(Budget(optimize="size")))


def front(work: Build, problem: Problem, plans: Sequence[Plan]) -> list[Plan]:
    """Return plans with the bytes of their artifacts, the smallest first; none that another beats."""
    known = sorted(
        (measured(work, problem, p) for p in plans), key=lambda f: (_bytes(f), _damage(f))
    )
    found: list[Sized] = []
    for one in known:
        if not found or _damage(one) < _damage(found[-1]):
            found.append(one)
    return [one.plan for one in found]


def measured(work: Build, problem: Problem, plan: Plan) -> Sized:
    """Return a plan with the bytes of its artifact, and the problem corrected by them."""
    key = tuple(plan.types.items())
    if key not in work.sizes:
        work.sizes[key] = _compiled(work, plan)
    size = work.sizes[key]
    rest = size - sum(row.bytes for row in plan.rows)
    return Sized(replace(problem, fixed=rest), replace(plan, bytes=size))


def _compiled(work: Build, plan: Plan) -> int:
    assert work.graph is not None
    assert work.samples is not None
    work.progress.stage("bytes of a plan")
    recipe = Recipe(
        work.target.scheme,
        some_samples(work.graph, work.samples, 1),
        QuantizationLog(),
        rounding="nearest",
        keep_float=work.options.keep_float,
        formats=weight_plans.formats(work, plan.types),
    )
    return weight_plans.artifact_bytes(work, work.target, recipe)


def _damage(found: Sized) -> float:
    assert found.plan.damage is not None
    return found.plan.damage


def _bytes(found: Sized) -> int:
    assert found.plan.bytes is not None
    return found.plan.bytes
