"""cross-layer-equalization: the function never changes, and runs come to rest."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec

PER_CHANNEL = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
PER_TENSOR = QuantSpec()


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
    streams: ModuleType, kinds: list[str], groups: int, per_tensor: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    middle = [nn.Conv2d(4, 4, 3, padding=1, groups=groups) for _ in kinds]
    layers = [nn.Conv2d(3, 4, 1), *middle, nn.Conv2d(4, 2, 1)]
    for layer in layers[:-1]:
        streams.scale_rows(layer, torch.exp2(torch.randint(-4, 5, (4,)).float()))

    def net(x: Tensor, stem: Any, *rest: Any) -> Any:
        stream = F.relu(stem(x))
        for kind, layer in zip(kinds, rest, strict=False):
            stream = random_step(kind, stream, layer)
        return rest[-1](stream)

    weight = PER_TENSOR if per_tensor else PER_CHANNEL
    streams.equalize(streams.applied(net, *layers), weight)


def test_the_bias_of_a_depthwise_layer_in_a_residual_block(streams: ModuleType) -> None:
    """What it reads and writes has one scale: its weight stays, and its bias does not."""

    def block(x: Tensor, stem: Any, depthwise: Any, head: Any) -> Any:
        stream = F.relu(stem(x))
        return head(F.relu(stream + depthwise(stream)))

    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 2, 1)
    streams.scale_rows(layers[0], streams.POWERS)
    assert streams.equalize(streams.applied(block, *layers)) == 3


def test_a_clamp_without_a_lower_bound_gets_none(streams: ModuleType) -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, streams.POWERS)
    streams.equalize(streams.applied(lambda x, a, b: b(torch.clamp(a(x), max=1.5)), first, second))


@pytest.mark.parametrize("bound", ["min", "max"])
def test_a_clamp_by_a_computed_bound(streams: ModuleType, bound: str) -> None:
    def clamps(x: Tensor, first: Any, second: Any) -> Any:
        return second(torch.clamp(first(x), **{bound: x.mean()}))

    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, streams.POWERS)
    streams.equalize(streams.applied(clamps, first, second))


def test_a_linear_layer_over_the_width(streams: ModuleType) -> None:
    layers = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(8, 5)
    streams.scale_rows(layers[0], streams.POWERS[:4])
    streams.equalize(streams.applied(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers))


def test_relu6_of_an_image_without_batch(streams: ModuleType) -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, streams.POWERS / 4)
    net = streams.Applies(lambda x, a, b: b(F.relu6(a(x))), first, second)
    streams.equalize(streams.canonical(net, torch.randn(3, 8, 8)))


def test_the_users_weights_are_left_as_they_were(streams: ModuleType) -> None:
    first, second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
    streams.scale_rows(first, streams.POWERS)
    net = streams.Applies(lambda x, a, b: b(F.relu(a(x))), first, second)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert streams.equalize(streams.canonical(net)) == 2
    torch.testing.assert_close(dict(net.state_dict()), state, rtol=0, atol=0)


@pytest.mark.parametrize("weight", [PER_CHANNEL, PER_TENSOR])
def test_repeated_runs_come_to_rest(streams: ModuleType, weight: QuantSpec) -> None:
    """Each step lowers a stream's noise by 1 % at least, so runs end; here within four."""
    layers = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
    streams.scale_rows(layers[0], streams.POWERS)
    graph = streams.applied(lambda x, a, b, c: c(F.relu(b(F.relu(a(x))))), *layers)
    counts = [streams.equalize(graph, weight) for _ in range(4)]
    assert counts[0] > 0
    assert counts[-1] == 0
