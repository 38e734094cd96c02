"""Plans of a build: damage is measured, formats are chosen, what was built is held against the limits."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qcompile.compiler.driver.language_models import GgufModel, open_language_model
from qcompile.compiler.driver.language_quality import compare_logits
from qcompile.compiler.driver.plan import Damages, Plan, Problem
from qcompile.compiler.ir.errors import CalibrationError, UnsupportedError
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.block_damage import BlockDamage
from qcompile.passes.mixed_precision.cotangents import drawn_labels
from qcompile.passes.quantization.block_moments import judges
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import BlockOptions
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

TOKENS = 16_384
"""Of the calibration data on which damage is measured."""
MEASURED_TOKENS = 16_384
"""Of those that judged roundings, on which a built artifact is measured."""
ROUNDS = 4
"""Builds, each with what the one before has taught, until ``max_kl`` holds."""
MARGIN = 0.98
"""Of a limit that the next build aims at."""
_FILE = "damage.json"


@dataclass
class Planned:
    """The plan of a build under way.

    Args:
        problem: What it was chosen from; ``None`` of a plan that was read.
        plan: Of the artifact that is built now.
        scale: Measured over predicted damage, so far.
        round: Which build it is, from 1.
        measured: KL divergence of the last artifact.
    """

    problem: Problem | None
    plan: Plan
    scale: float = 1.0
    round: int = 1
    measured: float | None = None


def with_plan(blocks: BlockOptions, plan: Plan) -> BlockOptions:
    """Return block options that give each tensor its planned format."""
    types = tuple((f"^{re.escape(name)}$", kind) for name, kind in plan.types.items())
    return replace(blocks, tensor_types=types)


def make_problem(work: Build, blocks: BlockOptions) -> Problem:
    """Return what each tensor may be and what that would do.

    Args:
        work: With its float graph and calibration data.
        blocks: The user's.

    Raises:
        CalibrationError: There is no data.
        UnsupportedError: Weights whose damage cannot be measured.
    """
    checkpoint, emitter, scheme = work.source.checkpoint, work.target.emitter, work.target.scheme
    assert checkpoint is not None
    keep = work.options.keep_float
    choices = emitter.tensor_choices(checkpoint, scheme, blocks, keep)
    first = Plan({name: c.formats[0].name for c in choices for name in c.tensors})
    file = emitter.plan_checkpoint(checkpoint, scheme, with_plan(blocks, first), keep)
    free = {name for choice in choices for name in choice.tensors}
    fixed = file.bytes - sum(choice.bytes[0] for choice in choices)
    elements = sum(math.prod(tensor.shape) for tensor in file.tensors)
    bits = 8 * sum(tensor.bytes for tensor in file.tensors if tensor.name not in free)
    return Problem(choices, measure_damage(work, choices), fixed, elements, bits)


def measure_damage(work: Build, choices: Sequence[TensorChoices]) -> Damages:
    """Return what each format of each weight would do; a killed build's results are found again."""
    assert work.graph is not None
    if work.samples is None:
        raise CalibrationError(
            "a budget needs calibration data, which says what each format would cost: give --calibrate FILE"
        )
    formats = {source: choice.formats for choice in choices for source in choice.sources}
    file = work.folder / _FILE
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}

    def keep(name: str, found: Mapping[str, float]) -> None:
        known[name] = found
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(known))
        part.replace(file)

    visitor = BlockDamage(work.graph, formats, dict(known), keep)
    if visitor.watched:
        samples = some_sequences(work.samples, TOKENS)
        limit, told = work.options.max_host_ram, work.progress.share
        WayBack(work.graph, samples, drawn_labels, limit, told).run(visitor)
    if missing := sorted(formats.keys() - visitor.found.keys()):
        raise UnsupportedError(
            f"no layer reads {', '.join(missing)}, so what their formats cost cannot be measured: "
            "give them one with --tensor-type"
        )
    return visitor.found


def some_sequences(samples: Samples, tokens: int) -> Samples:
    """Return sequences at equal distances, about so many tokens, one in each batch."""
    rows = [{name: value[i : i + 1] for name, value in batch.items()}
            for batch in samples for i in range(len(next(iter(batch.values()))))]  # fmt: skip
    length = next(iter(rows[0].values())).numel()
    wanted = max(1, min(len(rows), tokens // length))
    picked = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, wanted).round()]
    return Samples(picked, wanted, samples.source)


def measure(work: Build, stage: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with the artifact's KL divergence, and the gates of the budget."""
    planned, budget = work.planned, work.options.budget
    if planned is None or work.samples is None:
        return manifest
    assert work.source.checkpoint is not None
    ids = held_out(work.samples)
    original, artifact = open_language_model(work.source.checkpoint.path), GgufModel(stage)
    width = min(original.vocabulary, artifact.vocabulary)
    found = compare_logits(
        (row[:, :width] for row in original.logits(ids)),
        (row[:, :width] for row in artifact.logits(ids)),
        ids,
    )
    kl, error = found.figures.kl.mean, found.errors.kl.mean
    planned.measured = kl
    gates = list(manifest.gates)
    if budget.max_size is not None:
        gates.append(_gate("max-size", budget.max_size, manifest.sizes["artifact_bytes"], "bytes"))
    if budget.target_bpw is not None and planned.plan.bits_per_weight is not None:
        gates.append(
            _gate("target-bpw", budget.target_bpw, planned.plan.bits_per_weight, "bits a weight")
        )
    if budget.max_kl is not None:
        gates.append(_gate("max-kl", budget.max_kl, kl, "nats a token of KL divergence"))
    quality = {"kl": {"after": round(kl, 8), "before": 0.0}}
    said = f"KL divergence {kl:.6f} +- {error:.6f} on {found.tokens:,} held-out calibration tokens"
    if planned.plan.damage is not None:
        said += f"; the plan predicted {planned.plan.damage:.6f} of its weights"
    return dataclasses.replace(
        manifest, gates=tuple(gates), quality=quality, notes=(*manifest.notes, said)
    )


def repair(work: Build) -> bool:
    """Correct the plan by what was measured; return whether there is another to build.

    Raises:
        BudgetError: With what is known now, no plan keeps the limits.
    """
    planned, limit = work.planned, work.options.budget.max_kl
    if planned is None or planned.problem is None or limit is None or planned.measured is None:
        return False
    if planned.measured <= limit or planned.round == ROUNDS or not planned.plan.damage:
        return False
    planned.scale = planned.measured / planned.plan.damage
    budget = replace(work.options.budget, max_kl=MARGIN * limit)
    planned.plan = planned.problem.solve(budget, planned.scale)
    planned.round += 1
    return True


def held_out(samples: Samples) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return token ids of the batches that judged roundings and fitted none."""
    rows = torch.cat([next(iter(samples.batches[i].values())) for i in judges(len(samples))])
    return rows[: max(1, MEASURED_TOKENS // rows.shape[1])].numpy()


def _gate(name: str, limit: float, measured: float, unit: str) -> dict[str, Any]:
    message = f"{name}: {measured:,.6g} {unit}, the limit is {limit:,.6g}"
    return {
        "gate": name, "limit": limit, "measured": measured,
        "passed": measured <= limit, "message": message,
    }  # fmt: skip
