"""Plans whose bytes are no sum, beside an exhaustive search: layers share code while they share a format."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from qcompile.compiler.driver import weight_sizes
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.ir.errors import BudgetError
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.targets.plans import TensorChoices

KINDS = {"int4": 0.5, "int8": 1.0, "fp32": 4.0}
SHAPES = 2
"""Of layers: those of one shape and format share a kernel."""
KERNEL, WEIGHTS, REST = 700, 3000, 20_000


def problem(seed: int, layers: int = 6) -> Problem:
    """Return a problem whose prediction knows nothing of kernels."""
    draw = random.Random(seed)
    choices, damages = [], {}
    formats = tuple(WeightFormat(kind, FloatSpec()) for kind in KINDS)
    for i in range(layers):
        count = draw.randrange(WEIGHTS // 2, WEIGHTS)
        sizes = tuple(int(count * width) for width in KINDS.values())
        choices.append(TensorChoices({f"w{i}": (count,)}, (f"w{i}",), formats, sizes, sizes[-1]))
        worst = draw.expovariate(1.0)
        damages[f"w{i}"] = {"int4": worst, "int8": worst / 200, "fp32": 0.0}
    return Problem(choices, damages, REST, 6 * WEIGHTS, 0)


def artifact(problem: Problem, types: Mapping[str, str]) -> int:
    """Return the true bytes of a plan."""
    kernels = {(int(name[1:]) % SHAPES, kind) for name, kind in types.items()}
    sizes = (c.bytes[[f.name for f in c.formats].index(types[c.name])] for c in problem.choices)
    return REST + KERNEL * len(kernels) + sum(sizes)


def best(problem: Problem, limit: int) -> float:
    """Return the least damage of all plans whose artifact keeps the limit."""
    names = [c.name for c in problem.choices]
    plans = (
        dict(zip(names, kinds, strict=True))
        for kinds in itertools.product(KINDS, repeat=len(names))
    )
    return min(damage(problem, p) for p in plans if artifact(problem, p) <= limit)


def damage(problem: Problem, types: Mapping[str, str]) -> float:
    return sum(problem.damages[name][kind] for name, kind in types.items())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Compile nothing; return the plans that would have been."""
    found: list[Plan] = []

    def size(work: Any, plan: Plan) -> int:
        found.append(plan)
        return artifact(work.problem, plan.types)

    monkeypatch.setattr(weight_sizes, "_compiled", size)
    return found


def work_on(given: Problem, limit: int | None, **more: Any) -> Any:
    options = SimpleNamespace(budget=Budget(max_size=limit, **more))
    return SimpleNamespace(options=options, sizes={}, problem=given)


def test_near_the_best_of_all_plans(compiled: list[Plan]) -> None:
    """Without kernels in the prediction, the first plan is too large in most cases."""
    ratios, first = [], 0
    for seed in range(40):
        given = problem(seed)
        sizes = [artifact(given, dict.fromkeys(given.damages, kind)) for kind in KINDS]
        limit = int(sizes[0] + random.Random(seed).random() * (sizes[1] - sizes[0]) * 1.5)
        work = work_on(given, limit)
        start = len(compiled)
        given = weight_sizes.smallest(work, given).problem
        found = weight_sizes.settled(work, given)
        first += any(artifact(given, p.types) > limit for p in compiled[start + 1 : start + 2])
        assert found.plan.bytes == artifact(given, found.plan.types) <= limit
        assert found.problem.fixed + sum(r.bytes for r in found.plan.rows) == found.plan.bytes
        assert len(compiled) - start <= weight_sizes.PLANS + 2
        ratios.append(damage(given, found.plan.types) / best(given, limit))

    assert first > 20
    assert sum(ratio < 1.01 for ratio in ratios) >= 36
    assert max(ratios) < 1.5


def test_a_limit_of_damage_is_kept_too(compiled: list[Plan]) -> None:
    given = problem(1)
    work = work_on(given, REST + 6 * KERNEL + 6 * 4 * WEIGHTS, optimize="size")
    cap = 0.5 * damage(given, dict.fromkeys(given.damages, "int4"))
    found = weight_sizes.settled(work, given, cap)

    assert damage(given, found.plan.types) <= cap
    assert found.plan.bytes == artifact(given, found.plan.types)


def test_limits_that_no_plan_keeps_together(compiled: list[Plan]) -> None:
    """By prediction; and by prediction one does, but its artifact has kernels besides."""
    given = problem(1)
    eight = dict.fromkeys(given.damages, "int8")
    limit, cap = artifact(given, eight) - KERNEL, damage(given, eight)

    with pytest.raises(BudgetError, match="with the other limits kept, --max-size would have to"):
        weight_sizes.settled(work_on(given, limit - 2 * KERNEL), given, cap)
    assert not compiled
    said = rf"no plan keeps --max-size {limit:,} and .* nearest has {limit + KERNEL:,} bytes"
    with pytest.raises(BudgetError, match=said):
        weight_sizes.settled(work_on(given, limit), given, cap)


def test_without_a_size_the_bytes_are_measured_once(compiled: list[Plan]) -> None:
    given = problem(2)
    found = weight_sizes.settled(work_on(given, None), given, 1.0)

    assert len(compiled) == 1
    assert found.plan.bytes == artifact(given, found.plan.types)


def test_the_front_has_no_plan_that_another_beats(compiled: list[Plan]) -> None:
    given = problem(3)
    plans = weight_sizes.front(work_on(given, None), given, given.front(16))

    assert [p.bytes for p in plans] == sorted({p.bytes for p in plans})
    assert [p.damage for p in plans] == sorted({p.damage for p in plans}, reverse=True)
    assert all(p.bytes == artifact(given, p.types) for p in plans)
