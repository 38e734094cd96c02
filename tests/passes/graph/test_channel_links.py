"""find_links: which channels share a scale, and which must keep theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import run
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.channel_links import ChannelLinks, find_links


class Net(nn.Module):
    """A convolution, a function of its output, a convolution that reads the result."""

    def __init__(self, function: Callable[[Tensor], Any], reads: int = 4) -> None:
        super().__init__()
        self.write, self.read = nn.Conv2d(3, 4, 1), nn.Conv2d(reads, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.read(self.function(self.write(x)))


def make_graph(module: nn.Module) -> Graph:
    graph = trace(module, torch.randn(2, 3, 4, 4))
    run(graph, [Canonicalize()])
    return graph


def first_and_read(graph: Graph) -> tuple[ChannelLinks, Tensor, Tensor]:
    """Return the links, the first convolution's classes, and those of what the last one reads."""
    links = find_links(graph)
    write, *_, read = graph.calls(aten.conv2d.default)
    return links, links.ids[write], links.ids[read.args[0]]  # type: ignore[index]


def frozen(links: ChannelLinks, ids: Tensor) -> list[bool]:
    flags: list[bool] = links.frozen[ids].tolist()
    return flags


class Mixed(nn.Module):
    """A residual sum, a concatenation, and a free chain."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)
        self.side, self.head = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = F.relu(self.stem(x))
        stream = F.relu6(stream + self.inner(stream))
        result: Tensor = self.head(torch.cat([stream, F.relu(self.side(x))], 1))
        return result


def test_golden(golden: Callable[[str, str], None]) -> None:
    links = find_links(make_graph(Mixed()))
    lines = [
        f"{node.name} axis {links.axes[node]}: "
        + " ".join(f"{i}{'*' if links.frozen[i] else ''}" for i in ids.tolist())
        for node, ids in links.ids.items()
    ]
    golden("channel_links.txt", "\n".join([*lines, "* frozen"]) + "\n")


class Several(nn.Module):
    """Nets side by side: a trace costs 0.2 s, whatever its size."""

    def __init__(self, nets: list[Net]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Any:
        return [net(x) for net in self.nets]


def ends_of(graph: Graph) -> list[tuple[fx.Node, fx.Node]]:
    """Return the convolution that writes and the one that reads, for each net of ``Several``."""
    layers = {str(n.args[1]): n for n in graph.calls(aten.conv2d.default)}
    names = [f"nets_{i}_" for i in range(sum("write" in name for name in layers))]
    return [(layers[f"{n}write_weight"], layers[f"{n}read_weight"]) for n in names]


def test_links_go_through() -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda y: y,
        F.relu,
        F.relu6,
        lambda y: F.leaky_relu(y, 0.1),
        lambda y: F.max_pool2d(y, 2),
        lambda y: F.avg_pool2d(y, 2),
        lambda y: F.adaptive_avg_pool2d(y, 1),
        lambda y: F.interpolate(y, scale_factor=2.0),
        lambda y: F.interpolate(y, scale_factor=2.0, mode="bilinear"),
        lambda y: y[:, :, 1:, ::2],
        lambda y: y[1:],
        lambda y: y + y,
        lambda y: torch.cat([y, F.relu(y)], 0),
        lambda y: torch.cat([y, F.relu(y)], -1),
    ]
    graph = make_graph(Several([Net(function) for function in functions]))
    links = find_links(graph)
    ends = ends_of(graph)
    assert len(ends) == len(functions)
    for index, (write, read) in enumerate(ends):
        written = links.ids[write]
        assert links.ids[read.args[0]].tolist() == written.tolist(), index  # type: ignore[index]
        assert len(set(written.tolist())) == 4, index
        assert frozen(links, written) == [False] * 4, index


def test_links_end_at() -> None:
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda y: torch.softmax(y, 1),
        F.hardswish,
        F.hardsigmoid,
        F.gelu,
        torch.sigmoid,
        lambda y: y + 1,
        lambda y: y + y.mean((2, 3), keepdim=True),
        lambda y: torch.add(y, y, alpha=2),
        lambda y: y * y,
        lambda y: F.hardtanh(y, -1.0, 1.0),
        lambda y: torch.clamp(y, min=0.5),
        lambda y: F.threshold(y, 0.5, 0.0),
        lambda y: F.pad(y, (1, 1, 1, 1), value=1.0),
        lambda y: F.layer_norm(y, [4, 4]),
        lambda y: y.permute(0, 1, 3, 2),
        lambda y: F.conv_transpose2d(y, torch.ones(4, 2, 1, 1), groups=2),
    ]
    graph = make_graph(Several([Net(function) for function in functions]))
    links = find_links(graph)
    ends = ends_of(graph)
    assert len(ends) == len(functions)
    for index, (write, _) in enumerate(ends):
        assert frozen(links, links.ids[write]) == [True] * 4, index


def test_inputs_and_outputs_are_frozen() -> None:
    graph = make_graph(Net(F.relu))
    links = find_links(graph)
    write, read = graph.calls(aten.conv2d.default)
    assert write.args[0] not in links.ids
    assert frozen(links, links.ids[read]) == [True, True]


def test_a_value_that_is_also_an_output_is_frozen() -> None:
    class Both(Net):
        def forward(self, x: Tensor) -> Any:
            y = F.relu(self.write(x))
            return y, self.read(y)

    links, written, _ = first_and_read(make_graph(Both(F.relu)))
    assert frozen(links, written) == [True] * 4


def test_a_slice_of_channels_takes_its_classes() -> None:
    links, written, read = first_and_read(make_graph(Net(lambda y: y[:, 1:4:2], reads=2)))
    assert read.tolist() == written[1:4:2].tolist()
    assert frozen(links, written) == [False] * 4


def test_a_concatenation_of_channels_keeps_them_apart() -> None:
    both = Net(lambda y: torch.cat([F.relu(y), y.sigmoid()[:, :1], y], 1), reads=9)
    links, written, _ = first_and_read(make_graph(Net(lambda y: torch.cat([y, y[:, :2]], 1), 6)))
    (cat,) = [n for n in links.ids if n.target == aten.cat.default]
    assert links.ids[cat].tolist() == [*written.tolist(), *written[:2].tolist()]
    links = find_links(make_graph(both))
    assert bool(links.frozen.all())


def test_a_weight_with_two_users_is_not_rescaled() -> None:
    shared = Net(F.relu)
    shared.read = nn.Conv2d(4, 4, 1)
    shared.function = lambda y: shared.read(F.relu(y))
    links = find_links(make_graph(shared))
    assert len(links.layers) == 1
    assert bool(links.frozen.all())


def test_a_computed_weight_is_not_rescaled() -> None:
    computed = Net(lambda y: F.conv2d(y, y.mean((0, 2, 3)).reshape(1, 4, 1, 1)), reads=1)
    links = find_links(make_graph(computed))
    assert len(links.layers) == 2
    assert frozen(links, links.ids[links.layers[0]]) == [True] * 4


def test_padded_channels_are_new_classes() -> None:
    def pads(y: Tensor) -> Tensor:
        return aten.constant_pad_nd.default(y, [0, 0, 0, 0, 1, 2])

    links, written, read = first_and_read(make_graph(Net(pads, reads=7)))
    assert read[1:5].tolist() == written.tolist()
    assert len(set(read.tolist())) == 7
    assert frozen(links, read) == [False] * 7


def test_f_pad_of_channels_links() -> None:
    pads = Net(lambda y: F.pad(y, (0, 0, 0, 0, 1, 2)), reads=7)
    _, written, read = first_and_read(make_graph(pads))
    assert read[1:5].tolist() == written.tolist()


def test_flatten_links_to_a_linear_layer() -> None:
    class Flattens(Net):
        def forward(self, x: Tensor) -> Any:
            return F.linear(torch.flatten(F.relu(self.write(x)), 1), self.matrix)

    net = Flattens(F.relu)
    net.matrix = nn.Parameter(torch.randn(2, 64))
    graph = make_graph(net)
    links = find_links(graph)
    (write,), (fc,) = graph.calls(aten.conv2d.default), graph.calls(aten.linear.default)
    assert links.ids[fc.args[0]].tolist() == links.ids[write].repeat_interleave(16).tolist()  # type: ignore[index]


@pytest.mark.parametrize("bound", ["min", "max"])
def test_a_clamp_with_a_computed_bound_is_frozen(bound: str) -> None:
    class Clamps(Net):
        def forward(self, x: Tensor) -> Any:
            return self.read(torch.clamp(self.write(x), **{bound: x.mean()}))

    links, written, _ = first_and_read(make_graph(Clamps(F.relu)))
    assert frozen(links, written) == [True] * 4
