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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.heap import give_back
from qcompile.compiler.ir.ops import DECODE_BLOCKS
from qcompile.compiler.ir.stored import StoredBytes, digest
from qcompile.compiler.ir.weights import stand_in
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.keys import graph_digest
from qcompile.compiler.stages.shelf import NO_SHELF, Shelf
from qcompile.passes.base import Pass
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import Walk
from qcompile.passes.quantization.block_layers import reader, readers, readers_of
from qcompile.passes.quantization.block_moments import Moments
from qcompile.passes.quantization.block_rounding import (
    ROWS,
    encode_parts,
    naming,
)
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.block_walk import BlockRounder, OutputWatch
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
        stages: Where weights are found that other builds have rounded.
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
    stages: StageCache = field(default=NO_CACHE, repr=False)

    def run(self, graph: Graph) -> int:
        self.store.shelf = self._shelf(graph)
        try:
            self._round_all(graph)
        finally:
            self.store.flush()
        graph.erase_unused()
        return len(self.formats)

    def _shelf(self, graph: Graph) -> Shelf:
        if not self.stages:
            return NO_SHELF
        known = {name: digest(values) for name, values in sorted(self.importance.items())}
        samples = None if self.samples is None else self.samples.sha256()
        formats = {name: str(format) for name, format in self.formats.items()}
        options = [self.by_ggml, self.feedback]
        return Shelf(
            self.stages, self.name, (graph_digest(graph), samples, known, formats, options)
        )

    def _round_all(self, graph: Graph) -> None:
        if self.samples is not None and self._is_done():
            self._read(graph)
            return
        tables = self._tied_tables(graph)
        if self.samples is None:
            self._alone(graph)
        else:
            share = 0.25 if tables else 0.0
            seen = self._outputs_of(graph, tables, self.samples, share)
            walk = Walk(graph, self.samples, self.max_bytes, self._told(share, 1.0))
            walk.run(BlockRounder(self, graph, seen))

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
        watch = OutputWatch({node: name for name, node in tables.items()})
        Walk(graph, samples, self.max_bytes, self._told(0.0, share)).run(watch)
        keep_moments(self.steps, watch.seen)
        return watch.seen

    def _is_done(self) -> bool:
        return all(self.store.get(name) is not None for name in self.formats)

    def _read(self, graph: Graph) -> None:
        """Let weights that are all done be read, in the order of the walk."""
        done: set[str] = set()
        for layer in (layer for node in graph.nodes for layer in readers_of(node)):
            if layer.name in self.formats and layer.name not in done:
                self.decoded(graph, layer.name)
                done.add(layer.name)

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


def _add_stored(graph: Graph, name: str, stored: StoredBytes) -> fx.Node:
    node = graph.add_constant(name, stand_in(stored.shape(), torch.uint8).to("meta"))
    graph.weights.store(str(node.target), stored)
    return node
