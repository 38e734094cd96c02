"""The visitors of the walks that round a language model: what tables give, and weight after weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.heap import give_back
from qcompile.passes.calibration.routing import Routed, expert_outputs
from qcompile.passes.calibration.walk import Values, Walk, needed_for
from qcompile.passes.quantization.block_experts import expert_moments, round_expert
from qcompile.passes.quantization.block_layers import Reader, reader, readers_of
from qcompile.passes.quantization.block_moments import Moments, fitted, judges, moments
from qcompile.passes.quantization.block_rounding import (
    Blocks,
    best_rounding,
    encode,
    naming,
    round_table,
)
from qcompile.passes.quantization.records import LayerRecord

if TYPE_CHECKING:
    from qcompile.passes.quantization.quantize_blocks import QuantizeBlocks


class OutputWatch:
    """Collects the moments of what some layers read."""

    def __init__(self, layers: Mapping[fx.Node, str]) -> None:
        self.layers = layers
        self.needed = needed_for(node.all_input_nodes[0] for node in layers)
        self.seen: dict[str, tuple[Moments, Moments]] = {}

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Look at a layer's inputs; leave the layer to the walk."""
        layer = reader(node)
        if layer is not None and node in self.layers:
            self.seen[self.layers[node]] = both_moments(walk, layer)
        return None if node in self.needed else (node, Values((), ()))


class BlockRounder:
    """Takes over linear layers and look-ups whose weights are stored in blocks."""

    def __init__(
        self, task: QuantizeBlocks, graph: Graph, tables: Mapping[str, tuple[Moments, Moments]]
    ) -> None:
        self.task, self.tables = task, tables
        layers = [layer for node in graph.nodes if (layer := reader(node)) is not None]
        self.needed = needed_for(o.source for o in layers if o.name in task.formats)
        self.names: dict[fx.Node, str] = {}
        self.done: set[str] = set()
        self.source: fx.Node | None = None
        self.both: tuple[Moments, Moments] | None = None

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Round a layer's weights and compute both versions of its output."""
        layers = readers_of(node)
        names = [self._stored(walk, layer) for layer in layers]
        if node not in self.needed:
            return node, Values((), ())
        if not any(names):
            return None
        if layers[0].expert is not None:
            return node, self._expert_outputs(walk, node, names)
        return node, self._outputs(walk, layers[0], names[0])

    def _stored(self, walk: Walk, layer: Reader) -> str:
        """Let a layer read blocks; return the name of its weight, or nothing if it stays as it is."""
        name = self.names.get(layer.weight) or layer.name
        if layer.name in self.task.formats:
            if self.task.store.get(name) is None:
                self._round(walk, layer)
            self.names[self.task.decoded(walk.graph, name)] = name
            self.done.add(name)
        return name if name in self.done else ""

    def _round(self, walk: Walk, layer: Reader) -> None:
        if layer.expert is None:
            self._keep(walk, layer.name, lambda record: self._rounded(walk, layer, record))
            return
        seen = expert_moments(walk, layer.node, layer.expert)
        for name in self._alike(layer):  # gate and up: what they read is looked at once
            weight, format = walk.graph.weights[name], self.task.formats[name]
            self._keep(
                walk,
                name,
                lambda record, w=weight, f=format: round_expert(  # type: ignore[misc]
                    w, f, seen, record, self.task.feedback
                ),
            )

    def _alike(self, layer: Reader) -> list[str]:
        """Return the weights of an expert that are not done and read the same tokens."""
        nodes = [n for n in layer.source.users if n.target == layer.node.target]
        found = [readers_of(n) for n in nodes if n.args[:3] == layer.node.args[:3]]
        names = [own.name for experts in found for own in experts if own.expert == layer.expert]
        return [n for n in names if n in self.task.formats and self.task.store.get(n) is None]

    def _keep(self, walk: Walk, name: str, rounded: Callable[[LayerRecord], Blocks]) -> None:
        record = self.task.record(walk.graph, name)
        with naming(name):
            blocks = rounded(record)
        self.task.store.put(name, blocks, record)
        give_back()

    def _rounded(self, walk: Walk, layer: Reader, record: LayerRecord) -> Blocks:
        name, feedback = layer.name, self.task.feedback
        weight, format = walk.graph.weights[name], self.task.formats[name]
        if name in self.tables:
            return round_table(weight, format, *self.tables[name], record, feedback)
        if not layer.looks_up:
            return best_rounding(weight, format, *self._moments(walk, layer), record, feedback)
        blocks = encode(weight, format, None)
        record.rounding = blocks.method
        return blocks

    def _moments(self, walk: Walk, layer: Reader) -> tuple[Moments, Moments]:
        if self.both is None or layer.source is not self.source:
            self.both = None  # before the next are made: they are large
            self.source, self.both = layer.source, both_moments(walk, layer)
        return self.both

    def _outputs(self, walk: Walk, layer: Reader, name: str) -> Values:
        exact, decoded = walk.graph.weights[name], self._decoded(name)
        bias, inputs = walk.graph.constant(layer.bias), walk.values[layer.source]
        return Values(
            walk.batches(lambda i: layer(inputs.float[i], exact, bias)),
            walk.batches(lambda i: layer(inputs.quantized[i], decoded, bias)),
        )

    def _expert_outputs(self, walk: Walk, node: fx.Node, names: Sequence[str]) -> Values:
        rows = walk.graph.weights.peek(names[0]).shape[0]
        exact, prefix = (Routed.of(walk, node, quantized=q) for q in (False, True))
        weights = (walk.graph.weights[name] for name in names)
        decoded = (self._decoded(name) for name in names)
        return Values(
            expert_outputs(walk, exact, weights, rows), expert_outputs(walk, prefix, decoded, rows)
        )

    def _decoded(self, name: str) -> Tensor:
        found = self.task.store.get(name)
        assert found is not None
        return self.task.formats[name].decode(found[0].load())


def both_moments(walk: Walk, layer: Reader) -> tuple[Moments, Moments]:
    """Return the moments of a layer's inputs: of what roundings are fitted to, and of what judges."""
    inputs, count = walk.values[layer.source], len(walk.samples)
    return moments(inputs, fitted(count)), moments(inputs, judges(count), judging=True)
