"""Plans of models that are no language models on trial: what they do, before anything is built.

A plan's trial is the float graph with the weights that the damage was measured on: it runs in PyTorch, so
that ``--max-kl``, ``--max-drop`` and ``--min-sqnr`` are looked up on it, and what a format of one weight does
beside those of the others. The built artifact is then measured in its engine, and decides.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from qcompile.compiler.driver import parity, quality, verification
from qcompile.compiler.driver.budget import Budget, Goal
from qcompile.compiler.driver.closeness import Closeness
from qcompile.compiler.driver.plan import BYTES, DAMAGE, Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.driver.weight_damages import some_samples, trial_store
from qcompile.compiler.driver.weight_plans import predictions
from qcompile.compiler.ir.errors import BudgetError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Batch
from qcompile.passes.mixed_precision.correction import corrected
from qcompile.passes.quantization.trials import held_out

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

FEW = 256
"""Of the calibration data on which plans are tried with one format changed."""
LARGEST = 50_000_000
"""Parameters of a model whose plans are tried so: of a larger one each trial takes too long."""
STEPS = 8
"""Halvings, on a logarithmic scale, of the range in which the largest damage lies that limits allow."""
ABOVE = 1.001
"""Times the damage of the best plan is the least that is looked at: solvers have tolerances."""
SEVERAL = 8
"""Plans of the least corrected damage that are measured on trial before one is taken. Of 40 cases with
all 4,096 plans known, the first of them was within 2 % of the best in 34, the best of eight in all."""
ROOM = 1.25
"""A trial that misses a limit by more than this is not built."""


@dataclass(frozen=True)
class QualityLimit:
    """A limit of quality.

    Args:
        gate: Its name.
        limit: As the user gave it.
        measure: Of a graph in PyTorch.
        falls: Whether less is worse.
    """

    gate: str
    limit: float
    measure: Callable[[Graph], float]
    falls: bool = False

    def misses(self, measured: float) -> float:
        """Return by what factor an error is too large: at most 1 where the limit is kept."""
        if self.falls:
            return float(10 ** ((self.limit - measured) / 10))
        if measured <= self.limit:
            return 1.0
        return measured / self.limit if self.limit > 0 else math.inf

    def is_out_of_reach(self, measured: float) -> bool:
        """Return whether the limit is missed by more than a trial and an engine can differ."""
        return ROOM < self.misses(measured) < math.inf  # of a limit of 0 no share can be told


def limits(work: Build) -> list[QualityLimit]:
    """Return the limits of quality, those first that are looked up soonest."""
    options, found = work.options, []
    if options.min_sqnr is not None:
        found.append(
            QualityLimit("min-sqnr", options.min_sqnr, lambda g: sqnr(work, g), falls=True)
        )
    if options.budget.max_kl is not None:
        found.append(
            QualityLimit("max-kl", options.budget.max_kl, lambda g: trial_closeness(work, g).mean)
        )
    if options.max_drop is not None:
        found.append(QualityLimit("max-drop", options.max_drop, lambda g: _drop(work, g)))
    return found


def improved(work: Build, problem: Problem) -> tuple[Problem, Plan, float | None]:
    """Return the problem with damages as they are around its best plan, the plan, and the cap on damage.

    Raises:
        BudgetError: No plan keeps the limits.
    """
    limit = cap(work, problem)
    plan = solved(work, problem, limit)
    if not _is_small(work):
        return problem, plan, limit
    work.progress.stage("trials of formats")
    chosen = {item.name: plan.types[item.name] for item in problem.items()}
    store = trial_store(work)
    pairs, one_at_a_time = _trial_batches(work), threading.Lock()

    def measure(kinds: Mapping[str, str]) -> float:
        with one_at_a_time:  # shapes are inferred in a mode that graphs share
            graph = store.graph(_float(work), kinds)
        found = [(reference, graph.run(batch)) for reference, batch in pairs]
        return predictions(work).compare(found).mean

    damages = corrected(problem.items(), chosen, BYTES, DAMAGE, measure)
    better = replace(problem, damages=damages)
    new_limit = cap(work, better)
    if (goal := work.options.budget.goal) != "quality":
        new = solved(work, better, new_limit)
        is_better = _cost(new, goal) < _cost(plan, goal)
    else:
        several = better.several(_without_quality(work), SEVERAL, cap=new_limit)
        new = min(several, key=lambda one: measure(one.types))
        is_better = measure(new.types) < measure(plan.types)
    return (better, new, new_limit) if is_better else (problem, plan, limit)


def _cost(plan: Plan, goal: Goal) -> float:
    found = plan.milliseconds if goal == "latency" else plan.bytes
    assert found is not None
    return found


def _is_small(work: Build) -> bool:
    assert work.graph is not None
    weights = [work.graph.weights.peek(name) for name in work.graph.weights]
    return sum(w.numel() for w in weights) <= LARGEST


def _trial_batches(work: Build) -> list[tuple[Mapping[str, torch.Tensor], Batch]]:
    """Return calibration data with the original's outputs."""
    assert work.graph is not None
    assert work.samples is not None
    graph = work.graph
    batches = list(some_samples(graph, work.samples, FEW))
    return list(zip(each(graph.run, batches), batches, strict=True))


def solved(work: Build, problem: Problem, limit: float | None) -> Plan:
    """Return the best plan; limits of quality are in ``limit``, the largest damage."""
    return problem.solve(_without_quality(work), cap=limit)


def _without_quality(work: Build) -> Budget:
    budget = work.options.budget
    return replace(budget, max_kl=None, optimize=budget.goal)


def cap(work: Build, problem: Problem) -> float | None:
    """Return the largest damage whose plan keeps the limits of quality on trial; ``None`` without any.

    Raises:
        BudgetError: The best plan does not; says what it has.
    """
    wanted = limits(work)
    if not wanted:
        return None
    work.progress.stage("trials of plans")
    sizes, store = _without_quality(work), trial_store(work)

    def missed(plan: Plan, room: float = 1.0) -> str:
        graph = store.graph(_float(work), plan.types)
        for limit in wanted:
            if limit.misses(value := limit.measure(graph)) > room:
                return f"--{limit.gate} {limit.limit:g}: about {value:.4g}"
        return ""

    best = problem.solve(replace(sizes, optimize="quality"))
    grows = sizes.goal != "quality"
    if said := missed(best, 1.0 if grows else ROOM):
        raise BudgetError(
            f"no plan keeps these limits; the best, of {best.bytes:,} bytes ({best.bits_per_weight:g} bits "
            f"a weight), misses {said}"
        )
    return _largest(problem, sizes, best, missed) if grows else None


def trial_closeness(work: Build, graph: Graph) -> Closeness:
    """Return how far a graph is from the original on calibration data that fitted nothing."""
    return _closeness(work, lambda batch: graph.run(batch))


def engine_closeness(work: Build, stage: Path) -> Closeness:
    """Return the same of an artifact in its engine."""
    predict = quality.engine_predict(work, stage)

    def run(batch: Batch) -> Mapping[str, torch.Tensor]:
        found = predict({name: value.numpy() for name, value in batch.items()})
        return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}

    return _closeness(work, run)


def _closeness(work: Build, run: Callable[[Batch], Mapping[str, torch.Tensor]]) -> Closeness:
    assert work.samples is not None
    assert work.graph is not None
    batches = [work.samples.batches[i] for i in held_out(len(work.samples))]
    pairs = [(work.graph.run(batch), run(batch)) for batch in batches]
    return predictions(work).compare(pairs)


def _float(work: Build) -> Graph:
    assert work.graph is not None
    return work.graph


def sqnr(work: Build, graph: Graph) -> float:
    """Return the least SQNR of a graph's outputs to PyTorch's own, on the samples of the bundle's vectors."""
    inputs = verification.vector_inputs(work)
    reference = parity.reference_outputs(work.source.module, work.source.graph, inputs)
    found = parity.worst_db(parity.compare(reference, graph.run(inputs)))
    return math.inf if found is None else found


def _drop(work: Build, graph: Graph) -> float:
    before = quality.before(work)
    after = quality.metrics(work.source, quality.graph_predict(graph))
    quality.check_names(work.source, before, after)
    name = next(iter(before))
    return before[name] - after[name]


def _largest(problem: Problem, budget: Budget, best: Plan, missed: Callable[[Plan], str]) -> float:
    """Return the largest damage that holds, by halving on a logarithmic scale."""
    smallest = problem.solve(budget)
    assert best.damage is not None
    assert smallest.damage is not None
    if not missed(smallest):
        return smallest.damage
    low, high = max(ABOVE * best.damage, smallest.damage * 1e-9), smallest.damage
    tried: dict[int | None, bool] = {}
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        plan = problem.solve(budget, cap=middle)
        if plan.bytes not in tried:
            tried[plan.bytes] = not missed(plan)
        low, high = (middle, high) if tried[plan.bytes] else (low, middle)
    return low
