"""Range and power of each channel of a graph's values over all samples, one batch in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.samples import Samples


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

    def scaled(self, factor: Tensor) -> ChannelStatistics:
        """Return the statistics of the value times a positive factor a channel."""
        return ChannelStatistics(self.low * factor, self.high * factor, self.power * factor**2)


def channel_statistics(
    graph: Graph, samples: Samples, axes: Mapping[fx.Node, int]
) -> dict[fx.Node, ChannelStatistics]:
    """Run the float graph over all samples.

    Args:
        graph: Not changed.
        samples: All are used.
        axes: The nodes to look at, and the channel axis of each.
    """
    collector = _Collector(graph, axes)
    for batch in samples:
        with torch.no_grad():
            collector.run(*(batch[name] for name in graph.inputs))
    return {
        node: ChannelStatistics(s.low, s.high, s.power / max(1, collector.counts[node]))
        for node, s in collector.found.items()
    }


class _Collector(fx.Interpreter):
    def __init__(self, graph: Graph, axes: Mapping[fx.Node, int]) -> None:
        super().__init__(graph.module)
        self.weights = graph.weights
        self.axes = axes
        self.found: dict[fx.Node, ChannelStatistics] = {}
        self.counts: dict[fx.Node, int] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.weights[str(target)]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.axes and isinstance(value, Tensor) and value.numel():
            self._update(n, value)
        return value

    def _update(self, node: fx.Node, value: Tensor) -> None:
        axis = self.axes[node] % value.dim()
        dims = [d for d in range(value.dim()) if d != axis]
        low = value.amin(dims).double() if dims else value.double()
        high = value.amax(dims).double() if dims else value.double()
        power = value.square().sum(dims).double() if dims else value.double().square()
        count = value.numel() // value.shape[axis]
        if (seen := self.found.get(node)) is None:
            self.found[node] = ChannelStatistics(low, high, power)
            self.counts[node] = count
            return
        seen.low, seen.high = torch.minimum(seen.low, low), torch.maximum(seen.high, high)
        seen.power = seen.power + power
        self.counts[node] += count
