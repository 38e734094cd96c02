"""GPTQ: against rounding to nearest, against exhaustive search, and its view of a convolution."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.quantization.gptq import (
    Moments,
    as_matrix,
    gptaq,
    gptq,
    moments,
    moved_matrix,
    unfold,
)
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Rounded, round_to_nearest

LayerOf = Callable[[nn.Module, Tensor], Layer]
INT4 = QuantSpec(bits=4, granularity=Granularity.PER_CHANNEL, axis=0)
CONVOLUTIONS = [
    (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 8)),
    (nn.Conv2d(4, 6, (1, 3), stride=(2, 1), padding=(0, 1), bias=False), (2, 4, 7, 8)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False), (2, 4, 9, 8)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), (2, 4, 5, 5)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
    (nn.Conv1d(4, 4, 3, dilation=2, groups=4, bias=False), (2, 4, 9)),
]


def correlated(*shape: int) -> Tensor:
    """Values whose channels (axis 1) have much in common."""
    mixing = torch.randn(shape[1], shape[1]) * 0.4 + 1.0
    return torch.einsum("nc...,cd->nd...", torch.randn(*shape), mixing)


def decoded(rounded: Rounded) -> Tensor:
    return rounded.decoded


def cost(layer: Layer, rounded: Rounded, seen: Moments, target: Tensor | None = None) -> float:
    """The output error that H stands for."""
    matrix = as_matrix(layer)
    left = decoded(rounded).double().reshape(matrix.shape) - (matrix if target is None else target)
    return float((left * (left @ seen.hessian)).sum())


@pytest.mark.parametrize("module", [nn.Linear(16, 8), nn.Conv2d(8, 8, 3, padding=1)])
def test_beats_nearest_on_correlated_inputs(layer_of: LayerOf, module: nn.Module) -> None:
    x = correlated(256, 16) if isinstance(module, nn.Linear) else correlated(4, 8, 8, 8)
    layer = layer_of(module, x)
    nearest = round_to_nearest(layer.weight, INT4, layer.importance([x]))
    feedback = gptq(layer, INT4, nearest.params, moments(layer, [(x, x)]))

    def error(rounded: Rounded) -> float:
        difference = layer(x, decoded(rounded), None) - layer(x, layer.weight, None)
        return float(difference.square().sum())

    assert error(feedback) < 0.5 * error(nearest)
    assert feedback.params is nearest.params


def test_is_near_the_best_of_all_roundings(layer_of: LayerOf) -> None:
    ratios = []
    node = layer_of(nn.Linear(5, 1, bias=False), torch.randn(64, 5)).node
    for _ in range(20):
        x = torch.randn(64, 5) @ (torch.randn(5, 5) * 0.3 + torch.eye(5))
        layer = Layer(node, "weight", torch.rand(1, 5) - 0.5, None)
        params, seen = INT4.min_max(layer.weight), moments(layer, [(x, x)])
        floor = (layer.weight / params.scale).floor()
        steps = torch.tensor(list(itertools.product((-1, 0, 1, 2), repeat=5)))
        codes = (floor + steps).clamp(INT4.qmin, INT4.qmax)
        left = (codes * params.scale - layer.weight).double()
        best = float(((left @ seen.hessian[0]) * left).sum(1).min())
        ratios.append(cost(layer, gptq(layer, INT4, params, seen), seen) / best)
    ratios.sort()
    assert ratios[0] >= 1 - 1e-6
    assert ratios[len(ratios) // 2] < 1.05


@pytest.mark.parametrize(("module", "shape"), CONVOLUTIONS)
def test_unfolded_convolution_is_the_convolution(
    layer_of: LayerOf, module: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    layer = layer_of(module, x)
    rows = unfold(layer, x)
    product = rows @ as_matrix(layer).float().transpose(1, 2)  # [groups, positions, out / groups]
    expected = layer(x, layer.weight, None)
    got = product.permute(1, 0, 2).reshape(shape[0], -1, layer.weight.shape[0])
    torch.testing.assert_close(got.transpose(1, 2).reshape(expected.shape), expected)


def test_each_group_has_its_own_moments(layer_of: LayerOf) -> None:
    x = torch.randn(8, 4, 6, 6).cumsum(3)  # correlated along rows only
    layer = layer_of(nn.Conv2d(4, 8, 3, padding=1, groups=4), x)
    seen = moments(layer, [(x, x)])
    assert seen.hessian.shape == (4, 9, 9)
    nearest = round_to_nearest(layer.weight, INT4, layer.importance([x]))
    together = gptq(layer, INT4, nearest.params, seen)
    assert cost(layer, together, seen) < cost(layer, nearest, seen)

    alone = layer_of(nn.Conv2d(1, 2, 3, padding=1), x[:, 2:3])
    alone = Layer(alone.node, "weight", layer.weight[4:6], None)
    own = moments(alone, [(x[:, 2:3], x[:, 2:3])])
    torch.testing.assert_close(own.hessian[0], seen.hessian[2], rtol=1e-4, atol=1e-3)
    params = INT4.min_max(alone.weight)
    assert torch.equal(
        gptq(alone, INT4, params, own).codes,
        gptq(layer, INT4, INT4.min_max(layer.weight), seen).codes[4:6],
    )


def test_takes_one_scale_for_the_tensor(layer_of: LayerOf) -> None:
    x = correlated(128, 8)
    layer = layer_of(nn.Linear(8, 4), x)
    spec = QuantSpec(bits=4)
    nearest = round_to_nearest(layer.weight, spec, layer.importance([x]))
    seen = moments(layer, [(x, x)])
    rounded = gptq(layer, spec, nearest.params, seen)
    assert rounded.params.scale.shape == ()
    assert rounded.codes.dtype == torch.int8
    assert int(rounded.codes.abs().max()) <= spec.qmax
    assert cost(layer, rounded, seen) < cost(layer, nearest, seen)


def test_dead_inputs_do_no_harm(layer_of: LayerOf) -> None:
    x = correlated(128, 8)
    x[:, 3] = 0
    layer = layer_of(nn.Linear(8, 4), x)
    rounded = gptq(layer, INT4, INT4.min_max(layer.weight), moments(layer, [(x, x)]))
    difference = layer(x, decoded(rounded), None) - layer(x, layer.weight, None)
    assert difference.isfinite().all()
    nearest = round_to_nearest(layer.weight, INT4, layer.importance([x]))
    worst = layer(x, decoded(nearest), None) - layer(x, layer.weight, None)
    assert difference.square().sum() < worst.square().sum()


def test_moved_weight_makes_up_for_the_input(layer_of: LayerOf) -> None:
    exact = correlated(4096, 8)
    x = exact + 0.5 * torch.randn(4096, 8)
    layer = layer_of(nn.Linear(8, 4, bias=False), x)
    seen = moments(layer, [(exact, x)])
    moved = moved_matrix(layer, seen)[0].float()
    wanted = exact @ layer.weight.t()
    before = (x @ layer.weight.t() - wanted).square().sum()
    assert (x @ moved.t() - wanted).square().sum() < 0.9 * before
    assert gptaq(layer, INT4, INT4.min_max(layer.weight), seen).method == "gptaq"
    same = moments(layer, [(x, x)])
    torch.testing.assert_close(moved_matrix(layer, same), as_matrix(layer))
