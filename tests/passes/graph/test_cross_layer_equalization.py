"""cross-layer-equalization: scaled streams are undone, others are left alone."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run

PER_CHANNEL = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
PER_TENSOR = QuantSpec()


def test_golden(
    streams: ModuleType,
    golden: Callable[[str, str], None],
    quarters: Callable[[nn.Module], nn.Module],
) -> None:
    net = quarters(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU6(), nn.Conv2d(3, 2, 1)))
    streams.scale_rows(net[0], torch.tensor([1 / 16, 1, 1 / 4]))  # type: ignore[index]
    streams.scale_columns(net[2], torch.tensor([1 / 16, 1, 1 / 4]))  # type: ignore[index]
    x = (torch.arange(64) % 7 - 3).float().reshape(2, 2, 4, 4)
    graph = streams.canonical(net, x)
    assert streams.equalize(graph) == 3
    golden("cross_layer_equalization.txt", graph.to_text())
    assert run(graph, [streams.make_pass(graph)])[0].rewrites == 0


def residual(x: Tensor, stem: Any, first: Any, second: Any, third: Any, head: Any) -> Tensor:
    stream = F.relu(stem(x))
    stream = F.relu(stream + second(F.relu(first(stream))))
    stream = F.relu(stream + third(stream))
    result: Tensor = head(stream)
    return result


@pytest.mark.parametrize("weight", [PER_CHANNEL, PER_TENSOR])
def test_a_scaled_residual_stream_is_undone(streams: ModuleType, weight: QuantSpec) -> None:
    layers = [nn.Conv2d(3, 8, 3), *[nn.Conv2d(8, 8, 1) for _ in range(3)], nn.Conv2d(8, 2, 1)]
    stem, first, second, third, head = layers
    for layer in (stem, second, third):
        streams.scale_rows(layer, streams.POWERS)
    for layer in (first, third, head):
        streams.scale_columns(layer, streams.POWERS)
    graph = streams.applied(residual, *layers)
    ends = [n for n in graph.calls(aten.relu.default) if n.args[0].target == aten.add.Tensor]  # type: ignore[union-attr]
    before = [streams.imbalance(graph, node) for node in ends]
    assert min(before) > 60
    assert streams.equalize(graph, weight) == 5
    assert max(streams.imbalance(graph, node) for node in ends) < min(before) / 6


def test_a_scaled_depthwise_chain_is_undone(streams: ModuleType) -> None:
    wide, depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
    narrow = nn.Conv2d(8, 2, 1)
    for tensor in (*wide.parameters(), *depthwise.parameters()):
        tensor.data.abs_()  # no channel is dead
    streams.scale_rows(wide, streams.POWERS)
    streams.scale_rows(depthwise, streams.POWERS.flip(0) / streams.POWERS)
    streams.scale_columns(narrow, streams.POWERS.flip(0))
    chain = streams.Applies(
        lambda x, *la: la[2](F.relu(la[1](F.relu(la[0](x))))), wide, depthwise, narrow
    )
    graph = streams.canonical(chain)
    relus = graph.calls(aten.relu.default)
    before = [streams.imbalance(graph, node) for node in relus]
    streams.equalize(graph)
    after = [streams.imbalance(graph, node) for node in relus]
    assert all(a < b / 6 for a, b in zip(after, before, strict=True)), (before, after)


def test_a_concatenation_is_undone(streams: ModuleType) -> None:
    left, right, head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(left, streams.POWERS[:4])
    streams.scale_rows(right, streams.POWERS[4:])
    streams.scale_columns(head, streams.POWERS)

    def join(x: Tensor, left: Any, right: Any, head: Any) -> Any:
        return head(torch.cat([F.relu(left(x)), F.relu(right(x))], 1))

    graph = streams.applied(join, left, right, head)
    (cat,) = graph.calls(aten.cat.default)
    before = streams.imbalance(graph, cat)
    assert streams.equalize(graph) == 3
    assert streams.imbalance(graph, cat) < before / 6


def test_grouped_convolutions(streams: ModuleType) -> None:
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)
    streams.scale_rows(layers[0], streams.POWERS)
    for row in range(6):
        half = slice(0, 4) if row < 3 else slice(4, 8)
        layers[1].weight.data[row, :, 0, 0] /= streams.POWERS[half]
    graph = streams.applied(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers)
    (first, _) = graph.calls(aten.relu.default)
    before = streams.imbalance(graph, first)
    assert streams.equalize(graph) == 3
    assert streams.imbalance(graph, first) < before / 6


def test_bounds_of_relu6_move_with_their_channels(streams: ModuleType) -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, streams.POWERS / 4)
    graph = streams.applied(lambda x, a, b: b(F.relu6(a(x))), first, second)
    assert streams.equalize(graph) == 3
    (clamp,) = graph.calls(aten.clamp.Tensor)
    low, high = (graph.constant(node) for node in clamp.args[1:])
    assert low is not None
    assert high is not None
    assert float(low) == 0.0
    assert high.shape == (8, 1, 1)
    assert float(high.min()) >= 6.0, "a quantizer that saturates at 6 replaces them all"
    assert float(high.max()) > 6.0


def test_a_channel_that_reaches_its_bound_keeps_its_scale(streams: ModuleType) -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, torch.tensor([64.0, 0.1, 64.0, 0.1, 0.1, 0.1, 64.0, 0.1]))
    graph = streams.applied(lambda x, a, b: b(F.relu6(a(x))), first, second)
    rows = graph.weights["layers.0.weight"]
    streams.equalize(graph)
    kept = (graph.weights["layers.0.weight"] == rows).flatten(1).all(1)
    assert kept.tolist() == [True, False, True, False, False, False, True, False]


def pads_channels(x: Tensor, first: Any, second: Any) -> Any:
    return second(aten.constant_pad_nd.default(F.relu(first(x)), [0, 0, 0, 0, 4, 4]))


def test_channel_padding_of_a_shortcut(streams: ModuleType) -> None:
    """ResNet's option A: channels of zeros around those of the stream."""
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
    streams.scale_rows(first, streams.POWERS)
    streams.scale_columns(second, torch.cat([torch.ones(4), streams.POWERS, torch.ones(4)]))
    graph = streams.applied(pads_channels, first, second)
    (relu,) = graph.calls(aten.relu.default)
    before = streams.imbalance(graph, relu)
    assert streams.equalize(graph) == 2
    assert streams.imbalance(graph, relu) < before / 6


def test_channel_padding_as_people_write_it(streams: ModuleType) -> None:
    def pads(x: Tensor, first: Any, second: Any) -> Any:
        return second(F.pad(F.relu(first(x)), (0, 0, 0, 0, 4, 4)))

    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
    streams.scale_rows(first, streams.POWERS)
    assert streams.equalize(streams.applied(pads, first, second)) == 2


def flatten_net(streams: ModuleType, function: Callable[..., Any]) -> nn.Module:
    conv, fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5)
    streams.scale_rows(conv, streams.POWERS)
    streams.scale_columns(fc, streams.POWERS.repeat_interleave(36))
    return streams.Applies(function, conv, fc)


def test_flatten_then_linear(streams: ModuleType) -> None:
    def flatten(x: Tensor, conv: Any, fc: Any) -> Any:
        return fc(F.relu(conv(x)).flatten(1))

    graph = streams.canonical(flatten_net(streams, flatten))
    for node in graph.calls(aten.view.default):  # as use-global-pooling writes it
        with graph.before(node):
            graph.replace(node, graph.add_call(aten.flatten.using_ints, node.args[0], 1))
    (relu,) = graph.calls(aten.relu.default)
    before = streams.imbalance(graph, relu)
    assert streams.equalize(graph) == 2
    assert streams.imbalance(graph, relu) < before / 6


def test_flatten_as_it_is_traced(streams: ModuleType) -> None:
    graph = streams.canonical(
        flatten_net(streams, lambda x, conv, fc: fc(F.relu(conv(x)).flatten(1)))
    )
    assert not graph.calls(aten.flatten.using_ints)
    assert streams.equalize(graph) == 2


def test_frozen_streams_are_left_alone(streams: ModuleType) -> None:
    functions: list[Callable[..., Any]] = [
        lambda x, a, b: b(torch.softmax(a(x), 1)),
        lambda x, a, b: b(F.hardswish(a(x))),
        lambda x, a, b: b(torch.sigmoid(a(x))),
        lambda x, a, b: b(a(x) + 1),
        lambda x, a, b: b(F.hardtanh(a(x), -1.0, 1.0)),
        lambda x, a, b: (y := F.relu(a(x)), b(y)),
        lambda x, a, b: (F.relu(y := a(x)), b(y)),
        lambda x, a, b: b(a(x) * a(x)),
    ]
    nets = [streams.Applies(f, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)) for f in functions]
    for net in nets:
        streams.scale_rows(net.layers[0], streams.POWERS)
    every = streams.Applies(lambda x, *nets: tuple(net(x) for net in nets), *nets)
    assert streams.equalize(streams.canonical(every)) == 0


def test_nothing_to_equalize_without_two_layers(streams: ModuleType) -> None:
    assert streams.equalize(streams.applied(lambda x, a: F.relu(a(x)), nn.Conv2d(3, 8, 1))) == 0
