"""Move factors between what makes the inputs of linear layers and their columns, where rounding gains.

Before:  x = mul(g, h);      y = linear(x, w)        u = linear(h, w1, b1);      y = linear(silu(v) * u, w2)
After:   x = mul(g / s, h);  y = linear(x, w * s)    u = linear(h, w1 / s, b1 / s);  y = linear(..., w2 * s)

s is one number a channel, over columns. The function stays; what changes is which columns share a block's
scale with larger ones. One walk over the float graph gives the moments of all inputs; for each group
``input_scales.py`` chooses s, which stays 1 where no candidate lowers the error of its layers. It runs before
``quantize-blocks``. Weights in files stay there: they are multiplied when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.keys import graph_digest
from qcompile.compiler.stages.shelf import NO_SHELF, Shelf
from qcompile.passes.base import Pass
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import Values, Walk, needed_for
from qcompile.passes.quantization.block_moments import Moments, fitted, judges, moments
from qcompile.passes.quantization.channel_flow import Reader
from qcompile.passes.quantization.input_groups import Group, find_groups
from qcompile.passes.quantization.input_scales import (
    Choice,
    JudgedRows,
    choose,
    judged_rows,
    some_rows,
)
from qcompile.passes.quantization.records import FoldingRecord, QuantizationLog
from qcompile.passes.quantization.step_store import StepStore

_Both = tuple[Moments, Moments]


@dataclass(frozen=True)
class FoldInputScales(Pass):
    """Rescale the inputs of every group of layers whose rounding gains by it.

    Args:
        formats: Of each weight that will be stored in blocks, by its name.
        log: Gets a row a group.
        samples: Token ids.
        max_bytes: Activations in memory.
        on_progress: Told the share that is done.
        store: Keeps what was chosen, for a build that goes on.
        stages: Where choices are found that another build has made for an equal graph.
    """

    name = "fold-input-scales"
    formats: Mapping[str, BlockFormat] = field(repr=False)
    log: QuantizationLog = field(repr=False)
    samples: Samples = field(repr=False)
    max_bytes: int = 1 << 30
    on_progress: Callable[[float], None] = field(default=lambda share: None, repr=False)
    store: StepStore | None = field(default=None, repr=False)
    stages: StageCache = field(default=NO_CACHE, repr=False)

    def run(self, graph: Graph) -> int:
        groups = find_groups(graph, self.formats)
        if not groups:
            return 0
        chosen = self._chosen(graph, groups)
        folded = 0
        for group in groups:
            choice = chosen[group.name]
            self.log.foldings.append(_record(group, choice))
            if bool((choice.factors != 1).any()):
                group.apply(graph, choice.factors)
                folded += 1
        return folded

    def _chosen(self, graph: Graph, groups: list[Group]) -> Mapping[str, Choice]:
        """Return the choice of each group, by its name."""
        shelf = self._shelf(graph)
        if (kept := self._kept(shelf)) is not None:
            factors, facts = kept
            return {n: Choice(f["method"], factors[n], f["tried"]) for n, f in facts.items()}
        chooser = _Chooser(graph, self.formats, groups)
        Walk(graph, self.samples, self.max_bytes, self.on_progress).run(chooser)
        found = chooser.chosen
        facts = {n: {"method": c.method, "tried": dict(c.tried)} for n, c in found.items()}
        tensors = {n: c.factors for n, c in found.items()}
        shelf.put(self.name, tensors, facts)
        if self.store is not None:
            self.store.put(self.name, tensors, facts)
        return found

    def _kept(self, shelf: Shelf) -> tuple[Mapping[str, Tensor], Any] | None:
        kept = None if self.store is None else self.store.get(self.name)
        if kept is None and (shared := shelf.get(self.name)) is not None:
            kept = dict(shared.tensors), shared.facts
        return kept

    def _shelf(self, graph: Graph) -> Shelf:
        if not self.stages:
            return NO_SHELF
        formats = {name: str(format) for name, format in self.formats.items()}
        return Shelf(self.stages, self.name, (graph_digest(graph), self.samples.sha256(), formats))


class _Chooser:
    """Chooses the factors of each group once the walk has come to the last of its layers."""

    def __init__(
        self, graph: Graph, formats: Mapping[str, BlockFormat], groups: list[Group]
    ) -> None:
        self.graph, self.formats = graph, formats
        self.groups = {reader.node: group for group in groups for reader in group.readers}
        self.needed = needed_for(r.source for group in groups for r in group.readers)
        self.seen: dict[fx.Node, _Both] = {}
        self.chosen: dict[str, Choice] = {}

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Look at a layer's inputs; leave the layer to the walk."""
        if (group := self.groups.get(node)) is None:
            return None if node in self.needed else (node, Values((), ()))
        source = next(reader.source for reader in group.readers if reader.node is node)
        if source not in self.seen:
            values, count = walk.values[source], len(walk.samples)
            self.seen[source] = (
                moments(values, fitted(count)),
                moments(values, judges(count), judging=True),
            )
        if node is group.readers[-1].node:
            judged = list(self._judged(group))
            self.chosen[group.name] = choose(judged, self._columns(group), group.free)
            for reader in group.readers:
                self.seen.pop(reader.source, None)
        return None if node in self.needed else (node, Values((), ()))

    def _judged(self, group: Group) -> Iterator[JudgedRows]:
        """Yield rows that judge, those of one source and one format together."""
        alike: dict[tuple[fx.Node, BlockFormat], list[Reader]] = {}
        for reader in group.readers:
            if reader.weight in self.formats:
                alike.setdefault((reader.source, self.formats[reader.weight]), []).append(reader)
        for (source, format), readers in alike.items():
            rows = [some_rows(self._weight(reader), len(readers)) for reader in readers]
            yield judged_rows(rows, format, readers[0].channels, self.seen[source])

    def _columns(self, group: Group) -> Tensor:
        """Return the mean square of the weights on each channel."""
        total = torch.zeros(len(group.free)).double()
        count = torch.zeros(len(group.free)).double()
        for reader in group.readers:
            if reader.weight in self.formats:
                weight = self._weight(reader)
                total.index_add_(0, reader.channels, weight.square().sum(0).double())
                rows = torch.full((weight.shape[1],), float(len(weight))).double()
                count.index_add_(0, reader.channels, rows)
        return total / count.clamp(min=1)

    def _weight(self, reader: Reader) -> Tensor:
        """Return a layer's weight, ``[out, in]``."""
        weight = self.graph.weights[reader.weight]
        return weight if reader.axis == 1 else weight.T


def _record(group: Group, choice: Choice) -> FoldingRecord:
    layers = [reader.weight for reader in group.readers]
    error = choice.tried.get(choice.method, 1.0)
    return FoldingRecord(group.name, layers, choice.method, error, dict(choice.tried))
