"""Store weights in ggml's blocks, each rounded for the inputs that the blocks before it give.

Before:  y = linear(x, w, b);                 e = embedding(table, ids)
After:   d = decode_blocks(w_blocks, "Q4_K")  d = decode_blocks(table_blocks, "Q6_K")
         y = linear(x, d, b);                 e = embedding(d, ids)

With samples it is one walk: when it reaches a layer, the second moments of its inputs decide how its weight
is rounded (``block_rounding.py``); layers that read one value share them. The experts of a mixture are such
layers too, each rounded for the tokens that reach it (``block_experts.py``). A table that an output layer
reads too is rounded for what that layer reads in the float graph, which a walk before it collects. Without
samples each weight is rounded by itself, by an imatrix or by magnitude, and memory is one weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.heap import give_back
from qcompile.compiler.ir.ops import DECODE_BLOCKS
from qcompile.compiler.ir.stored import StoredBytes
from qcompile.compiler.ir.weights import stand_in
from qcompile.passes.base import Pass
from qcompile.passes.calibration.routing import Routed, expert_outputs
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import Values, Walk, needed_for
from qcompile.passes.quantization.block_experts import expert_moments, round_expert
from qcompile.passes.quantization.block_layers import Reader, reader, readers, readers_of
from qcompile.passes.quantization.block_moments import Moments, fitted, judges, moments
from qcompile.passes.quantization.block_rounding import (
    ROWS,
    Blocks,
    best_rounding,
    encode,
    encode_parts,
    naming,
    round_table,
)
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.records import LayerRecord, QuantizationLog
from qcompile.passes.quantization.step_store import StepStore
from qcompile.passes.quantization.table_moments import keep_moments, kept_moments

Told = Callable[[float], None]


@dataclass(frozen=True)
class QuantizeBlocks(Pass):
    """Store weights of linear layers and tables in blocks.

    Args:
        formats: Of each weight that is stored in blocks, by its name.
        log: Gets a row a weight.
        store: Keeps what is done.
        samples: Token ids; ``None`` to round each weight by itself.
        importance: ``E[x^2]`` of each input, by weight: an imatrix. Only without samples.
        by_ggml: Let llama.cpp's library encode, for its own bytes. Only without samples.
        max_bytes: Activations in memory.
        on_progress: Told the share that is done.
        feedback: Whether the errors of columns are made good by later ones; else each value is rounded by
            itself, weighted by what the samples say of its input.
        steps: Keeps what the walk for tables found, for a build that goes on.
    """

    name = "quantize-blocks"
    formats: Mapping[str, BlockFormat] = field(repr=False)
    log: QuantizationLog = field(repr=False)
    store: BlockStore = field(repr=False)
    samples: Samples | None = field(default=None, repr=False)
    importance: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    by_ggml: bool = False
    max_bytes: int = 1 << 30
    on_progress: Told = field(default=lambda share: None, repr=False)
    feedback: bool = True
    steps: StepStore | None = field(default=None, repr=False)

    def run(self, graph: Graph) -> int:
        try:
            self._round_all(graph)
        finally:
            self.store.flush()
        graph.erase_unused()
        return len(self.formats)

    def _round_all(self, graph: Graph) -> None:
        tables = self._tied_tables(graph)
        if self.samples is None:
            self._alone(graph)
        else:
            share = 0.25 if tables else 0.0
            seen = self._outputs_of(graph, tables, self.samples, share)
            walk = Walk(graph, self.samples, self.max_bytes, self._told(share, 1.0))
            walk.run(_Rounder(self, graph, seen))

    def ensures(self, graph: Graph) -> None:
        left = [name for name in self.formats if name in graph.weights]
        assert not left, f"{', '.join(left)} is not in blocks"

    def _told(self, start: float, end: float) -> Told:
        return lambda share: self.on_progress(start + share * (end - start))

    def _tied_tables(self, graph: Graph) -> dict[str, fx.Node]:
        """Return tables in blocks that a linear layer reads too, each with that layer."""
        found = [(node, layer) for node in graph.nodes if (layer := reader(node)) is not None]
        tables = {layer.name for _, layer in found if layer.looks_up}
        return {
            layer.name: node
            for node, layer in found
            if not layer.looks_up and layer.name in tables & self.formats.keys()
        }

    def _outputs_of(
        self, graph: Graph, tables: Mapping[str, fx.Node], samples: Samples, share: float
    ) -> dict[str, tuple[Moments, Moments]]:
        """Return moments of what output layers read in the float graph, by their table.

        Tables that are done need none.
        """
        tables = {name: node for name, node in tables.items() if self.store.get(name) is None}
        if not tables:
            return {}
        if (kept := kept_moments(self.steps)) is not None:
            return kept
        watch = _Watch({node: name for name, node in tables.items()})
        Walk(graph, samples, self.max_bytes, self._told(0.0, share)).run(watch)
        keep_moments(self.steps, watch.seen)
        return watch.seen

    def _alone(self, graph: Graph) -> None:
        for index, name in enumerate(self.formats):
            if self.store.get(name) is None:
                record = self.record(graph, name)
                rows, known = graph.weights.parts(name, ROWS), self.importance.get(name)
                with naming(name):
                    blocks = encode_parts(rows, self.formats[name], known, by_ggml=self.by_ggml)
                record.rounding = blocks.method
                self.store.put(name, blocks, record)
                give_back()
            self.decoded(graph, name)
            self.on_progress((index + 1) / len(self.formats))

    def record(self, graph: Graph, name: str) -> LayerRecord:
        """Return a new row of the report."""
        layer, stored = readers(graph, name)[0], graph.weights.peek(name)
        op, format = str(layer.node.target).split(".")[1], self.formats[name]
        size = format.storage_bytes(tuple(stored.shape))
        return LayerRecord(name, op, str(format), stored.numel(), size)

    def decoded(self, graph: Graph, name: str) -> fx.Node:
        """Let all readers of a weight read its blocks, which are done; return what decodes them."""
        found = self.store.get(name)
        assert found is not None
        stored, record = found
        self.log.layers.append(record)
        found_readers = readers(graph, name)
        with graph.before(found_readers[0].node):
            data = _add_stored(graph, f"{name}_blocks", stored)
            new = graph.add_call(DECODE_BLOCKS, data, self.formats[name].name)
        for layer in found_readers:
            layer.node.replace_input_with(layer.weight, new)
        return new


class _Watch:
    """Collects the moments of what some layers read."""

    def __init__(self, layers: Mapping[fx.Node, str]) -> None:
        self.layers = layers
        self.needed = needed_for(node.all_input_nodes[0] for node in layers)
        self.seen: dict[str, tuple[Moments, Moments]] = {}

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Look at a layer's inputs; leave the layer to the walk."""
        layer = reader(node)
        if layer is not None and node in self.layers:
            self.seen[self.layers[node]] = _both(walk, layer)
        return None if node in self.needed else (node, Values((), ()))


class _Rounder:
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
            self.source, self.both = layer.source, _both(walk, layer)
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


def _both(walk: Walk, layer: Reader) -> tuple[Moments, Moments]:
    """Return the moments of a layer's inputs: of what roundings are fitted to, and of what judges."""
    inputs, count = walk.values[layer.source], len(walk.samples)
    return moments(inputs, fitted(count)), moments(inputs, judges(count), judging=True)


def _add_stored(graph: Graph, name: str, stored: StoredBytes) -> fx.Node:
    node = graph.add_constant(name, stand_in(stored.shape(), torch.uint8).to("meta"))
    graph.weights.store(str(node.target), stored)
    return node
