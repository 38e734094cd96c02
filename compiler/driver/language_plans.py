"""Plans of language models: what there is to choose, and how an artifact is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from qcompile.compiler.driver import language, running
from qcompile.compiler.driver.closeness import Closeness
from qcompile.compiler.driver.language_models import GgufModel, open_language_model
from qcompile.compiler.driver.language_quality import compare_logits
from qcompile.compiler.driver.plan import Plan, with_plan
from qcompile.compiler.driver.problem import Problem
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.block_moments import judges
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target
    from qcompile.compiler.frontend.load import Source

MEASURED_TOKENS = 16_384
"""Of the calibration data that judged roundings and fitted none: on these an artifact is measured."""


def choices(source: Source, target: Target, options: BuildOptions) -> Sequence[TensorChoices]:
    """Return what there is to choose."""
    assert source.checkpoint is not None
    own = language.block_options(options)
    return target.emitter.tensor_choices(source.checkpoint, target.scheme, own, options.keep_float)


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
    found = Problem(choices, {}, fixed, elements, bits)
    return running.with_running(found, source, target, options)


def held_out(samples: Samples) -> NDArray[Any]:
    """Return token ids ``[sequences, length]`` of the batches that judged roundings and fitted none."""
    rows = torch.cat([next(iter(samples.batches[i].values())) for i in judges(len(samples))])
    return rows[: max(1, MEASURED_TOKENS // rows.shape[1])].numpy()


def closeness(work: Build, samples: Samples, stage: Path) -> Closeness:
    """Return the KL divergence of the artifact from the original, a token."""
    assert work.source.checkpoint is not None
    ids = held_out(samples)
    original, artifact = open_language_model(work.source.checkpoint.path), GgufModel(stage)
    width = min(original.vocabulary, artifact.vocabulary)
    found = compare_logits(
        (row[:, :width] for row in original.logits(ids)),
        (row[:, :width] for row in artifact.logits(ids)),
        ids,
    )
    return Closeness("kl", found.figures.kl.mean, found.errors.kl.mean, found.tokens, "tokens")
