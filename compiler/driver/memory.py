"""``--max-host-ram`` of a language model: what its build needs at least, and what is left for activations.

The least is what this process holds when its work begins and, beside it, the largest of what the steps
of the build hold at once: weights in float32, sums of products of inputs, values on their way through an
op. Files that llama.cpp maps are not counted: the system takes their pages back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.parallel import worker_count
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import needed_for
from qcompile.passes.quantization.block_layers import Reader, reader
from qcompile.targets.options import DEFAULT_ACTIVATIONS

FLOAT = 4
ENCODER = 96 << 20
"""Bytes that encoding some rows, and the allocator's rest, take on one core."""
ENGINE = 256 << 20
"""Bytes of the engine, its buffers, and both tokenizers."""
SUMS = 12
"""Matrices of a layer's inputs in float32: five of moments; three more each that two cores work on, or those
of an inverse in float64."""
BLOCK_SHARE = 0.5
"""Of a weight in float32: three candidates in blocks of up to five bits."""


@dataclass(frozen=True)
class Needs:
    """Bytes that a build needs at least.

    Args:
        base: What the process holds already.
        step: The largest step.
        values: On their way through the op with the largest ones.
    """

    base: int
    step: int
    values: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.step + self.values


def activation_bytes(
    graph: Graph, samples: Samples | None, limit: int | None, *, feedback: bool
) -> int:
    """Return how many bytes of activations may wait in memory.

    Args:
        graph: The float graph of a language model.
        samples: Its calibration data.
        limit: The user's, of the whole process; ``None`` for no limit but that of activations.
        feedback: Whether weights are rounded with error feedback.

    Raises:
        TargetError: The limit is less than what is needed.
    """
    if limit is None:
        return DEFAULT_ACTIVATIONS
    needs = least(graph, samples, feedback=feedback)
    if needs.total > limit:
        raise TargetError(
            f"--max-host-ram {limit:,} is less than the {needs.total:,} bytes that this build needs: "
            f"{needs.base:,} of Python and PyTorch, {needs.step:,} for its largest weight, "
            f"{needs.values:,} for values on their way; give more, shorter sequences (--seq-len), or "
            "--imatrix in place of --calibrate"
        )
    return limit - needs.total


def least(graph: Graph, samples: Samples | None, *, feedback: bool) -> Needs:
    """Return what a build needs at least."""
    layers = [layer for node in graph.nodes if (layer := reader(node)) is not None and layer.name]
    if samples is None:
        step = max(_alone(graph, layers), _verification(graph, layers))
        return Needs(own_bytes(), step, 0)
    sizes = [_rounding(graph, layer, feedback) for layer in layers]
    step = max(_verification(graph, layers), *sizes)
    return Needs(own_bytes(), step, _values(graph, layers, samples))


def _elements(graph: Graph, layer: Reader) -> int:
    return graph.weights.peek(layer.name).numel()


def _alone(graph: Graph, layers: list[Reader]) -> int:
    """Return the bytes for rounding a weight by itself."""
    largest = max(_elements(graph, layer) for layer in layers)
    return int((1 + BLOCK_SHARE) * FLOAT * largest) + ENCODER * worker_count()


def _rounding(graph: Graph, layer: Reader, feedback: bool) -> int:
    """Return the bytes for rounding a layer by its inputs, or for running both versions of it."""
    numbers = FLOAT * _elements(graph, layer)
    columns = graph.weights.peek(layer.name).shape[1]
    sums = 0 if layer.looks_up else SUMS if feedback else SUMS // 2
    return int((2 + BLOCK_SHARE) * numbers) + sums * FLOAT * columns**2 + ENCODER * worker_count()


def _verification(graph: Graph, layers: list[Reader]) -> int:
    """Return the bytes for the float model and the quantized graph side by side, or for the engine."""
    largest = max(_elements(graph, layer) for layer in layers)
    return max(int((2 + BLOCK_SHARE) * FLOAT * largest) + ENCODER, ENGINE)


def _values(graph: Graph, layers: list[Reader], samples: Samples) -> int:
    """Return the bytes of one op's inputs and output, in as many batches as run at once."""
    needed = needed_for(layer.source for layer in layers)
    batch = next(iter(samples.batches[0].values()))
    sizes = _sizes(graph, tuple(batch.shape))
    ops = [node for node in needed if node.op == "call_function"]
    most = max(sum(_bytes(n, sizes) for n in {node, *node.all_input_nodes}) for node in ops)
    return 2 * most * min(worker_count(), len(samples))


def _sizes(graph: Graph, shape: tuple[int, ...]) -> Mapping[str, int]:
    """Return what the free axes are, by their symbols."""
    (source,) = [node for node in graph.nodes if node.op == "placeholder"]
    return {str(symbol): size for symbol, size in zip(source.meta["val"].shape, shape, strict=True)}


def _bytes(node: fx.Node, sizes: Mapping[str, int]) -> int:
    """Return the bytes of a node's value; none of a constant, which is counted as a weight."""
    value = node.meta.get("val")
    if node.op == "get_attr" or not isinstance(value, Tensor):
        return 0
    count = value.numel()
    if isinstance(count, torch.SymInt):
        expression = count.node.expr
        count = int(expression.subs({s: sizes[str(s)] for s in expression.free_symbols}))
    return int(count) * value.element_size()


def own_bytes() -> int:
    """Return what this process holds in memory now, but files that it maps, its libraries among them.

    Where the system does not say, it is the most that it has held, files included.
    """
    status = Path("/proc/self/status")
    if status.exists():
        rows = dict(r.split(":", 1) for r in status.read_text().splitlines() if ":" in r)
        return int(rows["RssAnon"].split()[0]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most << 10)
