"""Plans of a build: formats are chosen within a budget, and what was built is held against it.

What there is to choose, and how an artifact is measured, is in ``language_plans.py`` for language models and
in ``weight_plans.py`` for all others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.compiler.driver import (
    language,
    language_plans,
    memory,
    running,
    weight_plans,
    weight_running,
    weight_sizes,
    weight_trials,
)
from qcompile.compiler.driver.closeness import Closeness
from qcompile.compiler.driver.damage import measure_damage
from qcompile.compiler.driver.plan import BYTES, DAMAGE, TIME, Plan, with_plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.driver.weight_damages import measure_weights
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import DEFAULT_ACTIVATIONS, BlockOptions

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

ROUNDS = 4
"""Builds, each with what the one before has taught, until the limits hold."""
MARGIN = 0.98
"""Of a limit that the next build aims at."""
STEP_DOWN = 0.5
"""Of the damage that was too much, where nothing says by how much."""


COSTS = {"max-size", "max-ram", "max-latency"}
"""Gates of what an artifact takes."""


@dataclass
class Planned:
    """The plan of a build under way.

    Args:
        plan: Of the artifact that is built now.
        problem: What it was chosen from; ``None`` of a plan that was read.
        scale: Measured over predicted damage, so far.
        cap: Damage at most, as predicted; of models that are no language models.
        round: Which build it is, from 1.
        measured: How far the last artifact is from the original.
        gates: Of the last artifact, by name.
        bytes: Of the last artifact.
    """

    plan: Plan
    problem: Problem | None = None
    scale: float = 1.0
    cap: float | None = None
    round: int = 1
    measured: Closeness | None = None
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    bytes: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        found = {**self.plan.as_json(), "builds": self.round}
        if (m := self.measured) is not None:
            found["measured"] = {m.kind: m.mean, f"{m.kind}_error": m.error, m.unit: m.count}
        return found


def choose(work: Build) -> None:
    """Choose the formats of a build's tensors, unless that is done or nothing asks for it.

    Raises:
        BudgetError: No plan keeps the limits.
    """
    options = work.options
    if work.planned is not None:
        return
    if options.plan_file is not None:
        work.planned = Planned(Plan.read(options.plan_file))
    elif options.plans:
        found = measured_problem(work)
        if work.source.checkpoint is not None:
            found, best = running.settled(work, found, options.budget)
            work.planned = Planned(best, found)
        else:
            work.planned = _of_weights(work, found)
    if work.planned is not None:
        _name_precision(work, work.planned.plan)


def _of_weights(work: Build, problem: Problem) -> Planned:
    """Return the plan of a model that is no language model."""
    if not work.target.emitter.has_kernels:
        better, plan, cap = weight_trials.improved(work, problem)
        return Planned(plan, better, cap=cap)
    if work.options.budget.max_size is not None:  # trials are around a plan of that size
        problem = weight_sizes.settled(work, problem).problem
    better, plan, cap = weight_trials.improved(work, problem)
    sized = weight_sizes.settled(work, better, cap, plan)
    return Planned(sized.plan, sized.problem, cap=cap)


def measured_problem(work: Build) -> Problem:
    """Return what plans are made of.

    Args:
        work: With its float graph and calibration data.

    Raises:
        BudgetError: Even the smallest artifact is too large.
        TargetError: The user's limit of memory is too low.
        UnsupportedError: Weights whose damage cannot be measured.
    """
    assert work.graph is not None
    work.progress.stage("damage of formats")
    limit = work.options.max_host_ram
    if work.source.checkpoint is None:
        offered = weight_plans.choices(work)
        found = weight_running.with_running(work, weight_plans.problem(work, offered))
        if work.target.emitter.has_kernels:
            found = weight_sizes.smallest(work, found).problem
        found.check(work.options.budget)
        max_bytes = DEFAULT_ACTIVATIONS if limit is None else limit
        return replace(found, damages=measure_weights(work, offered, max_bytes))
    max_bytes = memory.activation_bytes(work.graph, work.samples, limit, feedback=True)
    choices = language_plans.choices(work.source, work.target, work.options)
    found = language_plans.problem(work.source, work.target, work.options, choices)
    return replace(found, damages=measure_damage(work, choices, max_bytes))


def blocks(work: Build) -> BlockOptions:
    """Return what the emitter is told of blocks."""
    own = language.block_options(work.options)
    if work.planned is None or work.source.checkpoint is None:
        return own
    return with_plan(own, work.planned.plan)


def formats(work: Build) -> weight_plans.Formats | None:
    """Return the format of each weight of a plan; ``None`` without one, and of language models."""
    if work.planned is None or work.source.checkpoint is not None:
        return None
    return weight_plans.formats(work, work.planned.plan.types)


def folder(work: Build) -> Path:
    """Return the folder for what is done, which another plan must not find."""
    if work.planned is None:
        return work.folder
    text = json.dumps(dict(work.planned.plan.types), sort_keys=True)
    return work.folder / hashlib.sha256(text.encode()).hexdigest()[:16]


def measure(work: Build, stage: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with how far the artifact is from the original, and the gates of the budget."""
    planned, budget = work.planned, work.options.budget
    if planned is None:
        return manifest
    gates, size = list(manifest.gates), manifest.sizes["artifact_bytes"]
    if budget.max_size is not None:
        gates.append(running.gate("max-size", budget.max_size, size, "bytes"))
    if budget.target_bpw is not None and planned.plan.bits_per_weight is not None:
        bits = planned.plan.bits_per_weight
        gates.append(running.gate("target-bpw", budget.target_bpw, bits, "bits a weight"))
    if work.source.checkpoint is None:
        gates += weight_running.gates(work, stage, size)
        planned.measured = weight_trials.engine_closeness(work, stage)
    else:
        gates += running.gates(work, stage, _problem_of(work), planned.plan)
        if work.samples is not None:
            planned.measured = language_plans.closeness(work, work.samples, stage)
    if planned.measured is not None and budget.max_kl is not None:
        unit = planned.measured.unit.removesuffix("s")
        kl = planned.measured.mean
        gates.append(running.gate("max-kl", budget.max_kl, kl, f"nats a {unit} of KL divergence"))
    planned.gates, planned.bytes = {gate["gate"]: gate for gate in gates}, size
    plan = {**planned.as_json(), "front": _front(planned)}
    return dataclasses.replace(manifest, gates=tuple(gates), plan=plan)


def repair(work: Build) -> bool:
    """Correct the plan by what was measured; return whether there is another to build.

    Raises:
        BudgetError: With what is known now, no plan keeps the limits.
    """
    planned = work.planned
    if planned is None or planned.problem is None or planned.round == ROUNDS:
        return False
    correct = _correct_scale if work.source.checkpoint is not None else _correct
    if not correct(work, planned, planned.problem):
        return False
    planned.round += 1
    _name_precision(work, planned.plan)
    return True


def save(work: Build) -> None:
    """Write the plan where the user wants it."""
    if work.planned is not None and work.options.save_plan is not None:
        work.planned.plan.save(work.options.save_plan)


def _front(planned: Planned) -> list[dict[str, Any]]:
    """Return what the best plans of all sizes or times cost, by prediction; none of a plan that was read."""
    plans = [] if planned.problem is None else planned.problem.front()
    return [{name: getattr(plan, name) for name in (BYTES, DAMAGE, TIME)} for plan in plans]


def _correct_scale(work: Build, planned: Planned, problem: Problem) -> bool:
    """Make another plan of a language model whose KL divergence is too large."""
    limit = work.options.budget.max_kl
    if limit is None or planned.measured is None or not planned.plan.damage:
        return False
    if planned.measured.mean <= limit:
        return False
    planned.scale = planned.measured.mean / planned.plan.damage
    budget = replace(work.options.budget, max_kl=MARGIN * limit)
    planned.problem, planned.plan = running.settled(work, problem, budget, planned.scale)
    return True


def _problem_of(work: Build) -> Problem:
    """Return what the plan was made of; of a plan that was read, without damage."""
    if work.planned is not None and work.planned.problem is not None:
        return work.planned.problem
    choices = language_plans.choices(work.source, work.target, work.options)
    return language_plans.problem(work.source, work.target, work.options, choices)


def _correct(work: Build, planned: Planned, problem: Problem) -> bool:
    """Make another plan of a model that is too large, or whose damage is too much where size is improved."""
    failed = {name for name, gate in planned.gates.items() if not gate["passed"]}
    quality = [limit for limit in weight_trials.limits(work) if limit.gate in failed]
    may_grow = planned.cap is not None and planned.plan.damage is not None
    if not (failed & COSTS or (quality and may_grow)):
        return False
    assert planned.plan.bytes is not None
    off = planned.bytes - planned.plan.bytes
    learned = replace(problem, fixed=problem.fixed + off)
    planned.problem = weight_running.corrected(learned, planned.plan, planned.gates, off)
    for limit in quality if may_grow else ():
        misses = limit.misses(float(planned.gates[limit.gate]["measured"]))
        share = STEP_DOWN if limit.gate == "max-drop" else min(MARGIN / misses, MARGIN)
        assert planned.cap is not None
        assert planned.plan.damage is not None
        planned.cap = min(planned.cap, planned.plan.damage * share)
    planned.plan = weight_trials.solved(work, planned.problem, planned.cap)
    return True


def _name_precision(work: Build, plan: Plan) -> None:
    """Let the file say of itself which mix it is nearest to, unless the user gave one."""
    of_language = work.source.checkpoint is not None
    if plan.bits_per_weight is None or work.options.precision is not None or not of_language:
        return
    emitter, device = work.target.emitter, work.target.device
    scheme = emitter.scheme(emitter.precision_of(plan.bits_per_weight), device)
    work.target = replace(work.target, scheme=scheme)
