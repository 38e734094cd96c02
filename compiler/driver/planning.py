"""Plans of a build: formats are chosen within a budget, and what was built is held against it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from qcompile.compiler.driver import language, memory
from qcompile.compiler.driver.damage import measure_damage
from qcompile.compiler.driver.language_models import GgufModel, open_language_model
from qcompile.compiler.driver.language_quality import LanguageQuality, compare_logits
from qcompile.compiler.driver.plan import Plan, Problem, with_plan
from qcompile.compiler.ir.errors import CalibrationError, OutputError, TargetError
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.block_moments import judges
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import BlockOptions
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target
    from qcompile.compiler.frontend.load import Source

MEASURED_TOKENS = 16_384
"""Of the calibration data that judged roundings and fitted none: on these an artifact is measured."""
ROUNDS = 4
"""Builds, each with what the one before has taught, until ``max_kl`` holds."""
MARGIN = 0.98
"""Of a limit that the next build aims at."""


@dataclass
class Planned:
    """The plan of a build under way.

    Args:
        plan: Of the artifact that is built now.
        problem: What it was chosen from; ``None`` of a plan that was read.
        scale: Measured over predicted damage, so far.
        round: Which build it is, from 1.
        quality: Of the last artifact.
    """

    plan: Plan
    problem: Problem | None = None
    scale: float = 1.0
    round: int = 1
    quality: LanguageQuality | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data for the manifest."""
        found = {**self.plan.as_json(), "builds": self.round}
        if self.quality is not None:
            found["measured"] = {
                "kl": self.quality.figures.kl.mean,
                "kl_error": self.quality.errors.kl.mean,
                "tokens": self.quality.tokens,
            }
        return found


def check(source: Source, target: Target, options: BuildOptions) -> None:
    """Refuse budgets and plans that mean nothing here, and sizes that nothing reaches, before any work.

    Raises:
        BudgetError: Even the smallest file is too large.
        CalibrationError: A budget without calibration data.
        OutputError: The plan cannot be saved where it is wanted.
        TargetError: Anything else.
    """
    budget = options.budget
    budget.check()
    if options.save_plan is not None and not options.save_plan.absolute().parent.is_dir():
        raise OutputError(f"{options.save_plan.absolute().parent} does not exist: make it first")
    if not budget and options.plan_file is None:
        if options.save_plan is not None:
            raise TargetError(
                "--save-plan has no plan to save: give --max-size, --target-bpw or --max-kl"
            )
        return
    if source.checkpoint is None:
        raise TargetError(
            "--max-size, --target-bpw, --max-kl and --plan choose formats of language models so far: for "
            f"{source.where} give a precision, and gates with --min-sqnr and --max-drop"
        )
    if options.calibrate is None and budget:
        raise CalibrationError(
            "a budget needs calibration data, which says what each format would cost: give --calibrate FILE"
        )
    choices = _choices(source, target, options)
    if options.plan_file is not None:
        plan = Plan.read(options.plan_file)
        _check_types(plan, choices, options.plan_file)
        own = with_plan(language.block_options(options), plan)
        target.emitter.check_checkpoint(source.checkpoint, target.scheme, own)
    elif budget:
        problem(source, target, options, choices).check(budget)


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
    elif options.budget:
        found = measured_problem(work)
        work.planned = Planned(found.solve(options.budget), found)
    if work.planned is not None:
        _name_precision(work, work.planned.plan)


def measured_problem(work: Build) -> Problem:
    """Return what plans are made of.

    Args:
        work: With its float graph and calibration data.

    Raises:
        TargetError: The user's limit of memory is too low.
        UnsupportedError: Weights whose damage cannot be measured.
    """
    assert work.graph is not None
    work.progress.stage("damage of formats")
    limit = work.options.max_host_ram
    max_bytes = memory.activation_bytes(work.graph, work.samples, limit, feedback=True)
    choices = _choices(work.source, work.target, work.options)
    found = problem(work.source, work.target, work.options, choices)
    return replace(found, damages=measure_damage(work, choices, max_bytes))


def blocks(work: Build) -> BlockOptions:
    """Return what the emitter is told of blocks."""
    own = language.block_options(work.options)
    return own if work.planned is None else with_plan(own, work.planned.plan)


def folder(work: Build) -> Path:
    """Return the folder for what is done, which another plan must not find."""
    if work.planned is None:
        return work.folder
    text = json.dumps(dict(work.planned.plan.types), sort_keys=True)
    return work.folder / hashlib.sha256(text.encode()).hexdigest()[:16]


def problem(
    source: Source, target: Target, options: BuildOptions, choices: Sequence[TensorChoices]
) -> Problem:
    """Return what plans are made of, but for the damage."""
    assert source.checkpoint is not None
    first = Plan({name: c.formats[0].name for c in choices for name in c.tensors})
    own = with_plan(language.block_options(options), first)
    file = target.emitter.plan_checkpoint(source.checkpoint, target.scheme, own, options.keep_float)
    free = {name for choice in choices for name in choice.tensors}
    fixed = file.bytes - sum(choice.bytes[0] for choice in choices)
    elements = sum(math.prod(tensor.shape) for tensor in file.tensors)
    bits = 8 * sum(tensor.bytes for tensor in file.tensors if tensor.name not in free)
    return Problem(choices, {}, fixed, elements, bits)


def measure(work: Build, stage: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with the artifact's KL divergence, and the gates of the budget."""
    planned, budget = work.planned, work.options.budget
    if planned is None:
        return manifest
    gates, size = list(manifest.gates), manifest.sizes["artifact_bytes"]
    if budget.max_size is not None:
        gates.append(_gate("max-size", budget.max_size, size, "bytes"))
    if budget.target_bpw is not None and planned.plan.bits_per_weight is not None:
        bits = planned.plan.bits_per_weight
        gates.append(_gate("target-bpw", budget.target_bpw, bits, "bits a weight"))
    if work.samples is not None:
        planned.quality = _quality(work, work.samples, stage)
        if budget.max_kl is not None:
            kl = planned.quality.figures.kl.mean
            gates.append(_gate("max-kl", budget.max_kl, kl, "nats a token of KL divergence"))
    return dataclasses.replace(manifest, gates=tuple(gates), plan=planned.as_json())


def repair(work: Build) -> bool:
    """Correct the plan by what was measured; return whether there is another to build.

    Raises:
        BudgetError: With what is known now, no plan keeps the limits.
    """
    planned, limit = work.planned, work.options.budget.max_kl
    if planned is None or planned.problem is None or limit is None or planned.quality is None:
        return False
    measured = planned.quality.figures.kl.mean
    if measured <= limit or planned.round == ROUNDS or not planned.plan.damage:
        return False
    planned.scale = measured / planned.plan.damage
    budget = replace(work.options.budget, max_kl=MARGIN * limit)
    planned.plan = planned.problem.solve(budget, planned.scale)
    planned.round += 1
    _name_precision(work, planned.plan)
    return True


def save(work: Build) -> None:
    """Write the plan where the user wants it."""
    if work.planned is not None and work.options.save_plan is not None:
        work.planned.plan.save(work.options.save_plan)


def held_out(samples: Samples) -> NDArray[Any]:
    """Return token ids ``[sequences, length]`` of the batches that judged roundings and fitted none."""
    rows = torch.cat([next(iter(samples.batches[i].values())) for i in judges(len(samples))])
    return rows[: max(1, MEASURED_TOKENS // rows.shape[1])].numpy()


def _quality(work: Build, samples: Samples, stage: Path) -> LanguageQuality:
    assert work.source.checkpoint is not None
    ids = held_out(samples)
    original, artifact = open_language_model(work.source.checkpoint.path), GgufModel(stage)
    width = min(original.vocabulary, artifact.vocabulary)
    return compare_logits(
        (row[:, :width] for row in original.logits(ids)),
        (row[:, :width] for row in artifact.logits(ids)),
        ids,
    )


def _choices(source: Source, target: Target, options: BuildOptions) -> Sequence[TensorChoices]:
    assert source.checkpoint is not None
    own = language.block_options(options)
    return target.emitter.tensor_choices(source.checkpoint, target.scheme, own, options.keep_float)


def _check_types(plan: Plan, choices: Sequence[TensorChoices], file: Path) -> None:
    """Refuse a plan of another model.

    Raises:
        TargetError: Names the tensors and types.
    """
    wanted = {
        name: [f.name for f in choice.formats] for choice in choices for name in choice.tensors
    }
    wrong = []
    if unknown := sorted(plan.types.keys() - wanted.keys()):
        wrong.append(f"it has {len(unknown)} tensors that the model has not ({unknown[0]}, ...)")
    if missing := sorted(wanted.keys() - plan.types.keys()):
        wrong.append(f"{len(missing)} tensors have no type in it ({missing[0]}, ...)")
    odd = [f"{n}={t}" for n, t in plan.types.items() if n in wanted and t not in wanted[n]]
    if odd:
        wrong.append(
            f"these cannot be stored so, or --tensor-type says otherwise: {', '.join(odd)}"
        )
    if wrong:
        raise TargetError(f"{file} is no plan of this model: {'; '.join(wrong)}")


def _name_precision(work: Build, plan: Plan) -> None:
    """Let the file say of itself which mix it is nearest to, unless the user gave one."""
    if plan.bits_per_weight is None or work.options.precision is not None:
        return
    emitter, device = work.target.emitter, work.target.device
    scheme = emitter.scheme(emitter.precision_of(plan.bits_per_weight), device)
    work.target = replace(work.target, scheme=scheme)


def _gate(name: str, limit: float, measured: float, unit: str) -> dict[str, Any]:
    message = f"{measured:,.6g} {unit}, the limit is {limit:,.6g}"
    return {
        "gate": name, "limit": limit, "measured": measured,
        "passed": measured <= limit, "message": message,
    }  # fmt: skip
