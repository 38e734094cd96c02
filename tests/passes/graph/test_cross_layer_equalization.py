"""cross-layer-equalization: scaled streams are undone, and the function never changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run
from qcompile.passes.calibration.channel_statistics import channel_statistics
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.cross_layer_equalization import CrossLayerEqualization

PER_CHANNEL = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
PER_TENSOR = QuantSpec()
ACTIVATION = QuantSpec(signed=False, symmetric=False)
POWERS = torch.tensor([1 / 16, 1 / 2, 4, 16, 1, 1 / 8, 2, 8])
"""Factors by which a stream of eight channels is put out of balance."""


class Applies(nn.Module):
    """Layers, and a function of the input and them."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def scale_rows(layer: nn.Module, factors: Tensor) -> None:
    """Multiply what a layer writes."""
    weight, bias = layer.weight.data, layer.bias.data  # type: ignore[union-attr]
    weight.mul_(factors.reshape(-1, *[1] * (weight.dim() - 1)))
    bias.mul_(factors)


def scale_columns(layer: nn.Module, factors: Tensor) -> None:
    """Divide what a layer reads."""
    weight = layer.weight.data  # type: ignore[union-attr]
    weight.div_(factors.reshape(1, -1, *[1] * (weight.dim() - 2)))  # type: ignore[operator]


def make_pass(graph: Graph, weight: QuantSpec = PER_CHANNEL) -> CrossLayerEqualization:
    return CrossLayerEqualization(Samples([graph.inputs], 4, "random"), weight, ACTIVATION)


def canonical(module: nn.Module, x: Tensor | None = None) -> Graph:
    graph = trace(module, torch.randn(4, 3, 8, 8) if x is None else x)
    run(graph, [Canonicalize()])
    return graph


def assert_same_function(graph: Graph, before: Graph) -> None:
    """Compare on the calibration inputs and far beyond, where bounds clip everything.

    1e-5 of the largest output: a weight that is multiplied, then divided, is rounded twice.
    """
    for factor in (1.0, -1.0, 30.0):
        inputs = {name: value * factor for name, value in graph.inputs.items()}
        after, expected = graph.run(inputs), before.run(inputs)
        for name, value in expected.items():
            limit = 1e-5 * float(value.abs().max())
            torch.testing.assert_close(after[name], value, rtol=0, atol=limit)


def equalize(graph: Graph, weight: QuantSpec = PER_CHANNEL) -> int:
    """Run the pass, which must keep the function; return its count."""
    before = graph.copy()
    rewrites = run(graph, [make_pass(graph, weight)])[0].rewrites
    assert_same_function(graph, before)
    return rewrites


def imbalance(graph: Graph, node: Any) -> float:
    """Return the largest channel's range over the smallest's."""
    seen = channel_statistics(graph, Samples([graph.inputs], 4, "random"), {node: 1})[node]
    ranges = torch.maximum(seen.high, -seen.low)
    assert float(ranges.min()) > 0, "a dead channel has no range"
    return float(ranges.max() / ranges.min())


def test_golden(
    golden: Callable[[str, str], None], quarters: Callable[[nn.Module], nn.Module]
) -> None:
    net = quarters(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU6(), nn.Conv2d(3, 2, 1)))
    scale_rows(net[0], torch.tensor([1 / 16, 1, 1 / 4]))  # type: ignore[index]
    scale_columns(net[2], torch.tensor([1 / 16, 1, 1 / 4]))  # type: ignore[index]
    x = (torch.arange(64) % 7 - 3).float().reshape(2, 2, 4, 4)
    graph = canonical(net, x)
    assert equalize(graph) == 3
    golden("cross_layer_equalization.txt", graph.to_text())
    assert run(graph, [make_pass(graph)])[0].rewrites == 0


def residual(x: Tensor, stem: Any, first: Any, second: Any, third: Any, head: Any) -> Tensor:
    stream = F.relu(stem(x))
    stream = F.relu(stream + second(F.relu(first(stream))))
    stream = F.relu(stream + third(stream))
    result: Tensor = head(stream)
    return result


@pytest.mark.parametrize("weight", [PER_CHANNEL, PER_TENSOR])
def test_a_scaled_residual_stream_is_undone(weight: QuantSpec) -> None:
    layers = [nn.Conv2d(3, 8, 3), *[nn.Conv2d(8, 8, 1) for _ in range(3)], nn.Conv2d(8, 2, 1)]
    stem, first, second, third, head = layers
    for layer in (stem, second, third):
        scale_rows(layer, POWERS)
    for layer in (first, third, head):
        scale_columns(layer, POWERS)
    graph = canonical(Applies(residual, *layers))
    ends = [n for n in graph.calls(aten.relu.default) if n.args[0].target == aten.add.Tensor]  # type: ignore[union-attr]
    before = [imbalance(graph, node) for node in ends]
    assert min(before) > 60
    assert equalize(graph, weight) == 5
    assert max(imbalance(graph, node) for node in ends) < min(before) / 6


def test_a_scaled_depthwise_chain_is_undone() -> None:
    wide, depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8)
    narrow = nn.Conv2d(8, 2, 1)
    for tensor in (*wide.parameters(), *depthwise.parameters()):
        tensor.data.abs_()  # no channel is dead
    scale_rows(wide, POWERS)
    scale_rows(depthwise, POWERS.flip(0) / POWERS)
    scale_columns(narrow, POWERS.flip(0))
    chain = Applies(lambda x, *la: la[2](F.relu(la[1](F.relu(la[0](x))))), wide, depthwise, narrow)
    graph = canonical(chain)
    relus = graph.calls(aten.relu.default)
    before = [imbalance(graph, node) for node in relus]
    equalize(graph)
    after = [imbalance(graph, node) for node in relus]
    assert all(a < b / 6 for a, b in zip(after, before, strict=True)), (before, after)


def test_a_concatenation_is_undone() -> None:
    left, right, head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
    scale_rows(left, POWERS[:4])
    scale_rows(right, POWERS[4:])
    scale_columns(head, POWERS)

    def join(x: Tensor, left: Any, right: Any, head: Any) -> Any:
        return head(torch.cat([F.relu(left(x)), F.relu(right(x))], 1))

    graph = canonical(Applies(join, left, right, head))
    (cat,) = graph.calls(aten.cat.default)
    before = imbalance(graph, cat)
    assert equalize(graph) == 3
    assert imbalance(graph, cat) < before / 6


def test_grouped_convolutions() -> None:
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1, groups=2), nn.Conv2d(6, 2, 1)
    scale_rows(layers[0], POWERS)
    for row in range(6):
        half = slice(0, 4) if row < 3 else slice(4, 8)
        layers[1].weight.data[row, :, 0, 0] /= POWERS[half]
    graph = canonical(Applies(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers))
    (first, _) = graph.calls(aten.relu.default)
    before = imbalance(graph, first)
    assert equalize(graph) == 3
    assert imbalance(graph, first) < before / 6


def test_bounds_of_relu6_move_with_their_channels() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, POWERS / 4)
    graph = canonical(Applies(lambda x, a, b: b(F.relu6(a(x))), first, second))
    assert equalize(graph) == 3
    (clamp,) = graph.calls(aten.clamp.Tensor)
    low, high = (graph.constant(node) for node in clamp.args[1:])
    assert low is not None
    assert high is not None
    assert float(low) == 0.0
    assert high.shape == (8, 1, 1)
    assert float(high.min()) >= 6.0, "a quantizer that saturates at 6 replaces them all"
    assert float(high.max()) > 6.0


def test_a_channel_that_reaches_its_bound_keeps_its_scale() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, torch.tensor([64.0, 0.1, 64.0, 0.1, 0.1, 0.1, 64.0, 0.1]))
    graph = canonical(Applies(lambda x, a, b: b(F.relu6(a(x))), first, second))
    rows = graph.weights["layers.0.weight"]
    equalize(graph)
    kept = (graph.weights["layers.0.weight"] == rows).flatten(1).all(1)
    assert kept.tolist() == [True, False, True, False, False, False, True, False]


def pads_channels(x: Tensor, first: Any, second: Any) -> Any:
    return second(aten.constant_pad_nd.default(F.relu(first(x)), [0, 0, 0, 0, 4, 4]))


def test_channel_padding_of_a_shortcut() -> None:
    """ResNet's option A: channels of zeros around those of the stream."""
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
    scale_rows(first, POWERS)
    scale_columns(second, torch.cat([torch.ones(4), POWERS, torch.ones(4)]))
    graph = canonical(Applies(pads_channels, first, second))
    (relu,) = graph.calls(aten.relu.default)
    before = imbalance(graph, relu)
    assert equalize(graph) == 2
    assert imbalance(graph, relu) < before / 6


def test_channel_padding_as_people_write_it() -> None:
    def pads(x: Tensor, first: Any, second: Any) -> Any:
        return second(F.pad(F.relu(first(x)), (0, 0, 0, 0, 4, 4)))

    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 2, 1)
    scale_rows(first, POWERS)
    assert equalize(canonical(Applies(pads, first, second))) == 2


def flatten_net(function: Callable[..., Any]) -> nn.Module:
    conv, fc = nn.Conv2d(3, 8, 3), nn.Linear(8 * 36, 5)
    scale_rows(conv, POWERS)
    scale_columns(fc, POWERS.repeat_interleave(36))
    return Applies(function, conv, fc)


def test_flatten_then_linear() -> None:
    def flatten(x: Tensor, conv: Any, fc: Any) -> Any:
        return fc(F.relu(conv(x)).flatten(1))

    graph = canonical(flatten_net(flatten))
    for node in graph.calls(aten.view.default):  # as use-global-pooling writes it
        with graph.before(node):
            graph.replace(node, graph.add_call(aten.flatten.using_ints, node.args[0], 1))
    (relu,) = graph.calls(aten.relu.default)
    before = imbalance(graph, relu)
    assert equalize(graph) == 2
    assert imbalance(graph, relu) < before / 6


def test_flatten_as_it_is_traced() -> None:
    graph = canonical(flatten_net(lambda x, conv, fc: fc(F.relu(conv(x)).flatten(1))))
    assert not graph.calls(aten.flatten.using_ints)
    assert equalize(graph) == 2


def test_frozen_streams_are_left_alone() -> None:
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
    nets = [Applies(f, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)) for f in functions]
    for net in nets:
        scale_rows(net.layers[0], POWERS)
    every = Applies(lambda x, *nets: tuple(net(x) for net in nets), *nets)
    assert equalize(canonical(every)) == 0


def test_the_users_weights_are_left_as_they_were() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, POWERS)
    net = Applies(lambda x, a, b: b(F.relu(a(x))), first, second)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert equalize(canonical(net)) == 2
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


def test_nothing_to_equalize_without_two_layers() -> None:
    assert equalize(canonical(Applies(lambda x, a: F.relu(a(x)), nn.Conv2d(3, 8, 1)))) == 0


@pytest.mark.parametrize("weight", [PER_CHANNEL, PER_TENSOR])
def test_repeated_runs_come_to_rest(weight: QuantSpec) -> None:
    """Each step lowers a stream's noise by 1 % at least, so runs end; here within four."""
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    scale_rows(layers[0], POWERS)
    graph = canonical(Applies(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers))
    counts = [equalize(graph, weight) for _ in range(4)]
    assert counts[0] > 0
    assert counts[-1] == 0


def random_step(kind: str, stream: Tensor, layer: Any) -> Tensor:
    """Apply one step of a random network to ``[N, 4, 8, 8]``."""
    steps: dict[str, Callable[[], Tensor]] = {
        "conv": lambda: layer(stream),
        "relu": lambda: F.relu(layer(stream)),
        "relu6": lambda: F.relu6(layer(stream)),
        "leaky": lambda: F.leaky_relu(layer(stream), 0.2),
        "hardswish": lambda: F.hardswish(layer(stream)),
        "residual": lambda: F.relu(stream + layer(stream)),
        "cat": lambda: torch.cat([stream[:, 2:], F.relu6(layer(stream))[:, :2]], 1),
        "pool": lambda: F.max_pool2d(layer(stream), 3, 1, 1),
        "shift": lambda: aten.constant_pad_nd.default(stream, [0, 0, 0, 0, 1, -1]),
    }
    return steps[kind]()


KINDS = ["conv", "relu", "relu6", "leaky", "hardswish", "residual", "cat", "pool", "shift"]


@settings(max_examples=12, phases=[Phase.generate])  # shrinking takes minutes of exports
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4),
    groups=st.sampled_from([1, 2, 4]),
    per_tensor=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_function_of_any_net_stays_the_same(
    kinds: list[str], groups: int, per_tensor: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    middle = [nn.Conv2d(4, 4, 3, padding=1, groups=groups) for _ in kinds]
    layers = [nn.Conv2d(3, 4, 1), *middle, nn.Conv2d(4, 2, 1)]
    for layer in layers[:-1]:
        scale_rows(layer, torch.exp2(torch.randint(-4, 5, (4,)).float()))

    def net(x: Tensor, stem: Any, *rest: Any) -> Any:
        stream = F.relu(stem(x))
        for kind, layer in zip(kinds, rest, strict=False):
            stream = random_step(kind, stream, layer)
        return rest[-1](stream)

    equalize(canonical(Applies(net, *layers)), PER_TENSOR if per_tensor else PER_CHANNEL)


def test_a_clamp_without_a_lower_bound_gets_none() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, POWERS)
    equalize(canonical(Applies(lambda x, a, b: b(torch.clamp(a(x), max=1.5)), first, second)))


@pytest.mark.parametrize("bound", ["min", "max"])
def test_a_clamp_by_a_computed_bound(bound: str) -> None:
    def clamps(x: Tensor, first: Any, second: Any) -> Any:
        return second(torch.clamp(first(x), **{bound: x.mean()}))

    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, POWERS)
    equalize(canonical(Applies(clamps, first, second)))


def test_a_linear_layer_over_the_width() -> None:
    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 5)
    scale_rows(layers[0], POWERS[:4])
    equalize(canonical(Applies(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers)))


def test_relu6_of_an_image_without_batch() -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    scale_rows(first, POWERS / 4)
    net = Applies(lambda x, a, b: b(F.relu6(a(x))), first, second)
    equalize(canonical(net, torch.randn(3, 8, 8)))
