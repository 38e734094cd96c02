"""Time of a device that is not here, modelled from facts about it.

An op takes the longer of two times: its arithmetic at the Neural Engine's peak, and what it moves, its
weights as they are stored, its inputs and outputs, at the memory's bandwidth (the roofline model: Williams,
Waterman and Patterson, CACM 52(4), 2009). Views move nothing, nor does what is fused with an activation.
Both facts are peaks, so that no device is faster unless its caches hold the model; what a call costs
besides its ops is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interpret import ConstantReader
from qcompile.passes.graph.fusion import fused_activation
from qcompile.targets.device import Device
from qcompile.targets.plans import TensorChoices, TokenTimes

_MS = 1e3


def _lstm_operations(
    values: Sequence[int], input: Sequence[int], hidden: Sequence[int], *rest: Any, **shapes: Any
) -> int:
    """Return those of a layer: each step multiplies by both of its matrices."""
    return 2 * prod(values[:-1]) * (prod(input) + prod(hidden))


_LSTM = {torch.ops.aten.mkldnn_rnn_layer: _lstm_operations}
"""PyTorch's counter does not know it."""


@dataclass(frozen=True)
class Op:
    """What an op does for one sample.

    Args:
        weights: Names of the constants that it reads.
        operations: Multiplications and additions.
        elements: Of the values that it reads and writes, constants not among them.
    """

    weights: tuple[str, ...]
    operations: int
    elements: int


def knows(device: Device) -> bool:
    """Return whether there are the facts that times are modelled from."""
    return device.memory_bandwidth_gbs is not None and device.neural_engine_tops is not None


def ops(graph: Graph) -> list[Op]:
    """Return the ops of a graph as they run for one sample."""
    counter = _Counter(graph)
    inputs = [_one_sample(graph, name) for name in graph.inputs]
    with torch.no_grad():
        counter.run(*inputs)
    return counter.found


def call_times(
    graph: Graph,
    found: Sequence[Op],
    choices: Sequence[TensorChoices],
    device: Device,
    float_bytes: int,
) -> TokenTimes:
    """Return what each format of each weight adds to the time of a call.

    Args:
        graph: Whose constants the ops read.
        found: Its ops.
        choices: What there is to choose of its weights.
        device: That ``knows`` says is known.
        float_bytes: Of a value, and of a constant that no choice is about.
    """
    assert device.memory_bandwidth_gbs is not None
    assert device.neural_engine_tops is not None
    a_byte = _MS / (device.memory_bandwidth_gbs * 1e9)
    an_operation = _MS / (device.neural_engine_tops * 1e12)
    of_weight = {source: choice for choice in choices for source in choice.sources}
    times = {
        choice.name: dict.fromkeys((f.name for f in choice.formats), 0.0) for choice in choices
    }
    rest = 0.0
    for op in found:
        chosen = [name for name in op.weights if name in of_weight]
        others = sum(graph.weights.peek(n).numel() for n in op.weights if n not in of_weight)
        moved = float_bytes * (op.elements + others)
        if not chosen:
            rest += max(a_byte * moved, an_operation * op.operations)
        for name in chosen:
            choice = of_weight[name]
            share = graph.weights.peek(name).numel() / _numbers(graph, choice)
            for format, size in zip(choice.formats, choice.bytes, strict=True):
                times[choice.name][format.name] += max(
                    a_byte * (size * share + moved / len(chosen)),
                    an_operation * op.operations / len(chosen),
                )
    return TokenTimes(times, rest, modelled=True)


def _numbers(graph: Graph, choice: TensorChoices) -> int:
    return sum(graph.weights.peek(source).numel() for source in choice.sources)


def _one_sample(graph: Graph, name: str) -> Tensor:
    value = graph.inputs[name]
    return value[:1] if 0 in graph.dynamic.get(name, {}) else value


class _Counter(ConstantReader):
    """Runs a graph and counts what its ops do."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module, graph.weights)
        self.found: list[Op] = []
        self._sizes: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run an op and note it; see ``fx.Interpreter``."""
        with FlopCounterMode(display=False, custom_mapping=_LSTM) as counter:
            value = super().run_node(n)
        if n.op in ("placeholder", "call_function"):
            self._sizes[n] = 0 if fused_activation(n) else _elements(value)
        if n.op == "call_function" and not _is_view(n):
            read = sum(self._sizes.get(i, 0) for i in n.all_input_nodes)
            names = tuple(str(i.target) for i in n.all_input_nodes if i.op == "get_attr")
            self.found.append(Op(names, int(counter.get_total_flops()), read + self._sizes[n]))
        return value


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and all(r.alias_info is not None for r in schema.returns)


def _elements(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    return sum(map(_elements, value)) if isinstance(value, list | tuple) else 0
