"""Range and power of each channel of a graph's values over all samples, a batch a worker in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.keys import graph_digest
from qcompile.compiler.stages.shelf import NO_SHELF, Shelf
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Batch, Samples

_STAGE = "channel-statistics"
_PARTS = ("low", "high", "power")


@dataclass
class ChannelStatistics:
    """What was seen of one value, a number a channel, float64 ``[channels]``.

    Args:
        low: Smallest value.
        high: Largest value.
        power: Mean square over samples and positions.
    """

    low: Tensor
    high: Tensor
    power: Tensor


@dataclass
class _Seen:
    """What one batch gave: ``power`` is a sum here, over ``count`` values a channel."""

    low: Tensor
    high: Tensor
    power: Tensor
    count: int

    def add(self, other: _Seen) -> None:
        self.low = torch.minimum(self.low, other.low)
        self.high = torch.maximum(self.high, other.high)
        self.power = self.power + other.power
        self.count += other.count


def channel_statistics(
    graph: Graph, samples: Samples, axes: Mapping[fx.Node, int], stages: StageCache = NO_CACHE
) -> dict[fx.Node, ChannelStatistics]:
    """Run the float graph over all samples, or take what another build has seen of an equal graph.

    Args:
        graph: Not changed.
        samples: All are used.
        axes: The nodes to look at, and the channel axis of each.
        stages: Where that is.
    """
    shelf, places = NO_SHELF, {node.name: axis for node, axis in axes.items()}
    if stages:
        shelf = Shelf(stages, _STAGE, (graph_digest(graph), samples.sha256(), places))
    if (known := shelf.get(_STAGE)) is not None:
        nodes = {node.name: node for node in axes}
        return {
            nodes[name]: ChannelStatistics(*(known.tensors[f"{name}.{p}"] for p in _PARTS))
            for name in known.facts
        }
    found = _seen(graph, samples, axes)
    tensors = {f"{n.name}.{p}": getattr(s, p) for n, s in found.items() for p in _PARTS}
    shelf.put(_STAGE, tensors, [node.name for node in found])
    return found


def _seen(
    graph: Graph, samples: Samples, axes: Mapping[fx.Node, int]
) -> dict[fx.Node, ChannelStatistics]:
    total: dict[fx.Node, _Seen] = {}
    for found in each(lambda i: _batch(graph, samples.batches[i], axes), range(len(samples))):
        for node, seen in found.items():
            if node in total:
                total[node].add(seen)
            else:
                total[node] = seen
    return {n: ChannelStatistics(s.low, s.high, s.power / s.count) for n, s in total.items()}


def _batch(graph: Graph, batch: Batch, axes: Mapping[fx.Node, int]) -> dict[fx.Node, _Seen]:
    collector = _Collector(graph, axes)
    collector.run(*(batch[name] for name in graph.inputs))
    return collector.found


class _Collector(fx.Interpreter):
    def __init__(self, graph: Graph, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(graph.module)
        self.weights = graph.weights
        self.axes = axes
        self.found: dict[fx.Node, _Seen] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.weights[str(target)]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.axes and isinstance(value, Tensor) and value.numel():
            self.found[n] = _channels(value, self.axes[n] % value.dim())
        return value


def _channels(value: Tensor, axis: int) -> _Seen:
    dims = [d for d in range(value.dim()) if d != axis]
    low = value.amin(dims).double() if dims else value.double()
    high = value.amax(dims).double() if dims else value.double()
    power = value.square().sum(dims).double() if dims else value.double().square()
    return _Seen(low, high, power, value.numel() // value.shape[axis])
