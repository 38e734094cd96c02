"""Plans of models that are no language models: what there is to choose, and what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qcompile.compiler.driver import quality
from qcompile.compiler.driver.closeness import Predictions, predictions_of
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat, WeightSpec
from qcompile.passes import base
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.order import Recipe
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target
    from qcompile.compiler.frontend.load import Source

Formats = Mapping[str, WeightSpec | FloatSpec]


def planned_target(
    source: Source, target: Target, options: BuildOptions, *, wanted: bool = False
) -> Target:
    """Return the target, with the scheme of a plan where one is wanted, here or by the options.

    Raises:
        TargetError: The format stores all weights alike, or the user named the one format.
    """
    if source.checkpoint is not None or not (wanted or options.plans):
        return target
    scheme = target.emitter.mixed_scheme(target.device)
    if options.precision not in (None, scheme.precision):
        raise TargetError(
            f"-p {options.precision} gives all weights one format, and a budget or a plan gives each its "
            "own: leave one of them out; --tensor-type REGEX=TYPE pins single weights"
        )
    return replace(target, scheme=scheme)


def early_choices(source: Source, target: Target, options: BuildOptions) -> Sequence[TensorChoices]:
    """Return what there is to choose, before any work."""
    graph = source.graph.copy()
    base.run(graph, target.emitter.float_passes(), base.RunOptions(check=False))
    return _choices(graph, target, options)


def choices(work: Build) -> Sequence[TensorChoices]:
    """Return what there is to choose of the float graph."""
    assert work.graph is not None
    return _choices(work.graph, work.target, work.options)


def check_size(choices: Sequence[TensorChoices], limit: int | None) -> None:
    """Refuse a size that the weights alone do not reach.

    Raises:
        BudgetError: Says what they take.
    """
    smallest = sum(min(c.bytes) for c in choices)
    if limit is not None and smallest > limit:
        raise BudgetError(
            f"no plan keeps --max-size {limit:,}: the weights alone take at least {smallest:,} bytes"
        )


def formats(work: Build, types: Mapping[str, str]) -> Formats:
    """Return the format of each weight; ``types`` names that of the first tensor of each choice."""
    found: dict[str, WeightSpec | FloatSpec] = {}
    for choice in choices(work):
        for format in choice.formats:
            if isinstance(format, WeightFormat) and format.name == types[choice.name]:
                found.update(dict.fromkeys(choice.sources, format.spec))
    return found


def problem(work: Build, choices: Sequence[TensorChoices]) -> Problem:
    """Return what plans are made of, but for the damage; sizes are those of an artifact of floats."""
    assert work.graph is not None
    total = _float_bytes(work)
    floats = sum(choice.float_bytes for choice in choices)
    weights = [work.graph.weights.peek(n) for n in work.graph.weights]
    elements = sum(w.numel() for w in weights if w.is_floating_point())
    rest = elements - sum(math.prod(s) for c in choices for s in c.tensors.values())
    return Problem(
        choices, {}, total - floats, elements, rest * work.target.scheme.float_bits, work_kind(work)
    )


def work_kind(work: Build) -> str:
    """Return by what the predictions of a build's model are judged."""
    return predictions(work).kind


def predictions(work: Build) -> Predictions:
    """Return what the predictions of a build's model are."""
    assert work.graph is not None
    assert work.samples is not None
    if work.predictions is None:
        example = work.graph.run(work.samples.batches[0])
        figures = list(quality.before(work)) if _evaluates(work) else []
        wants_kl = work.options.budget.max_kl is not None
        work.predictions = predictions_of(work.graph, example, figures, wants_kl)
        if wants_kl and work.predictions.kind != "kl":
            raise TargetError(
                "--max-kl is a distance of class probabilities, and this model has no single output "
                "[..., classes]: give --min-sqnr"
            )
    return work.predictions


def _choices(graph: Graph, target: Target, options: BuildOptions) -> Sequence[TensorChoices]:
    pins = options.blocks.tensor_types
    return target.emitter.weight_choices(graph, target.device, pins, options.keep_float)


def _evaluates(work: Build) -> bool:
    return work.source.evaluate is not None and work.options.evaluate


def _float_bytes(work: Build) -> int:
    """Return the bytes of the artifact with all weights as floats: it is written, and looked at."""
    target = replace(work.target, scheme=replace(work.target.scheme, weight=None))
    return artifact_bytes(work, target, Recipe(target.scheme, None, QuantizationLog()))


def artifact_bytes(work: Build, target: Target, recipe: Recipe) -> int:
    """Return the bytes of an artifact that a recipe gives."""
    assert work.graph is not None
    graph = work.graph.copy()
    base.run(graph, target.emitter.passes(recipe), base.RunOptions(check=False))
    return target.emitter.artifact_bytes(graph, target.order(work.source.name))
