"""``--dry-run``: the plan with its sizes, and what runs fast; nothing is calibrated or written."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from qcompile.compiler.driver import language, plan_checks
from qcompile.compiler.driver.activations import peak_activation_bytes
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.target import Target
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes import base
from qcompile.passes.pipelines import float_pipeline
from qcompile.targets.plans import NodePlan, TensorPlan

GRAPH_BYTES_A_NODE = {True: 550, False: 200}
"""Measured on the examples: what a node takes beside its weights, with its q/dq pairs and without."""


@dataclass(frozen=True)
class DryRun:
    """What a build would make.

    Args:
        target: As the user named it.
        format: The emitter's name.
        precision: Its name.
        weight: Format of weights.
        activation: Format of activations.
        nodes: What becomes of each.
        artifact_bytes: About how large the artifact will be; exactly, if there are ``tensors``.
        peak_ram_bytes: Weights and live activations at the example inputs' size, without the engine;
            ``None`` for language models, whose context decides.
        passes: Names, in order.
        tensors: What becomes of those of a language model.
        least_token_ms: Milliseconds that the device's memory takes to give what a token of a language
            model reads; no device is faster. ``None`` if its bandwidth is not known.
        notes: What is not as one might expect, a sentence each.
    """

    target: str
    format: str
    precision: str
    weight: str
    activation: str
    nodes: list[NodePlan]
    artifact_bytes: int
    peak_ram_bytes: int | None
    passes: list[str]
    tensors: tuple[TensorPlan, ...] = ()
    least_token_ms: float | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)

    def slow(self) -> list[str]:
        """Return what will not run fast, a line an op: count, format, reason."""
        counts = Counter((n.op, n.runs, n.why) for n in self.nodes if not n.fast)
        return [
            f"{count} x {op} in {runs}: {why}" for (op, runs, why), count in sorted(counts.items())
        ]


def dry_run(source: Source, options: BuildOptions) -> DryRun:
    """Return the plan of a build.

    Raises:
        QCompileError: As the build would.
    """
    target = options.resolve()
    language.check_kind(source, target)
    target.emitter.check(source.graph, target.device)
    language.check(source, target, options)
    plan_checks.check(source, target, options)
    plan_checks.check_names(source, options.keep_float)
    _refuse_budget(source, options)
    if source.checkpoint is not None:
        return _of_tensors(source.checkpoint, target, options)
    graph = source.graph.copy()
    passes = float_pipeline()
    base.run(graph, passes, base.RunOptions(check=False))
    nodes = target.emitter.plan(graph, target.scheme, target.device)
    graph_bytes = GRAPH_BYTES_A_NODE[target.scheme.activation is not None] * len(nodes)
    weights = sum(n.bytes for n in nodes) + _other_constants(graph, nodes, target)
    return DryRun(
        target=target.name,
        format=target.emitter.name,
        precision=target.scheme.precision,
        weight=str(target.scheme.weight or f"fp{target.scheme.float_bits}"),
        activation=str(target.scheme.activation or f"fp{target.scheme.float_bits}"),
        nodes=nodes,
        artifact_bytes=weights + graph_bytes,
        peak_ram_bytes=weights + peak_activation_bytes(graph, nodes, target.scheme.float_bits // 8),
        passes=[p.name for p in passes],
    )


def _refuse_budget(source: Source, options: BuildOptions) -> None:
    """Raise for what is only known after calibration; a language model's saved plan says it all.

    Raises:
        TargetError: There is a budget.
    """
    if options.budget or (options.plans and source.checkpoint is None):
        raise TargetError(
            "what a budget buys is known after calibration: leave out --dry-run, or give --pareto, which "
            "builds nothing"
        )


def _of_tensors(checkpoint: Checkpoint, target: Target, options: BuildOptions) -> DryRun:
    found = language.file_plan(checkpoint, target, options)
    gigabytes = target.device.memory_bandwidth_gbs
    return DryRun(
        target=target.name,
        format=target.emitter.name,
        precision=target.scheme.precision,
        weight=target.scheme.precision,
        activation=f"fp{target.scheme.float_bits}",
        nodes=[],
        artifact_bytes=found.bytes,
        peak_ram_bytes=None,
        passes=[p.name for p in target.emitter.float_passes()],
        tensors=found.tensors,
        least_token_ms=found.token_bytes / (gigabytes * 1e6) if gigabytes else None,
        notes=found.notes,
    )


def _other_constants(graph: Graph, nodes: list[NodePlan], target: Target) -> int:
    """Return the bytes of constants that belong to no layer: embeddings, norms, tables."""
    counted = {name for node in nodes for name in node.constants}
    width = target.scheme.float_bits // 8
    rest = [graph.weights.peek(name) for name in graph.weights if name not in counted]
    return sum(t.numel() * (width if t.is_floating_point() else t.element_size()) for t in rest)
