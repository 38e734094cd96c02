"""channel_statistics: the numbers of all samples together, however they are batched."""

from __future__ import annotations

import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.calibration.channel_statistics import ChannelStatistics, channel_statistics
from qcompile.passes.calibration.samples import Samples

IMAGES = torch.randn(12, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def make_graph() -> Graph:
    return trace(nn.Conv2d(3, 4, 3), IMAGES[:2], ({0: torch.export.Dim("batch")},))


def measure(graph: Graph, size: int) -> ChannelStatistics:
    (conv,) = graph.calls(aten.conv2d.default)
    samples = Samples([{"input": batch} for batch in IMAGES.split(size)], 12, "test")
    return channel_statistics(graph, samples, {conv: 1})[conv]


def test_equals_those_of_the_whole() -> None:
    graph = make_graph()
    value = graph.run({"input": IMAGES})["output"].double()
    for size in (1, 5, 12):
        seen = measure(graph, size)
        torch.testing.assert_close(seen.low, value.amin((0, 2, 3)))
        torch.testing.assert_close(seen.high, value.amax((0, 2, 3)))
        torch.testing.assert_close(seen.power, value.square().mean((0, 2, 3)))


def test_bytes_do_not_depend_on_threads() -> None:
    graph, threads = make_graph(), torch.get_num_threads()
    first = measure(graph, 2)
    torch.set_num_threads(2)
    again = measure(graph, 2)
    torch.set_num_threads(threads)
    assert torch.equal(first.power, again.power)
    assert torch.equal(first.low, again.low)
