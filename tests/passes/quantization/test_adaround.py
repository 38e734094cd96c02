"""AdaRound: better than nearest, decided in the end, and the same twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec
from qcompile.passes.quantization import adaround as module
from qcompile.passes.quantization.adaround import adaround
from qcompile.passes.quantization.gptq import moments, moved_matrix
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Rounded, round_to_nearest

LayerOf = Callable[[nn.Module, Tensor], Layer]
INT4 = QuantSpec(bits=4, granularity=Granularity.PER_CHANNEL, axis=0)


@pytest.fixture
def image() -> Tensor:
    return torch.randn(8, 4, 8, 8).cumsum(3) * 0.3 + torch.randn(8, 1, 8, 8)


def test_beats_nearest_on_a_convolution(layer_of: LayerOf, image: Tensor) -> None:
    layer = layer_of(nn.Conv2d(4, 8, 3, padding=1), image)
    nearest = round_to_nearest(layer.weight, INT4, layer.importance([image]))
    with torch.no_grad():
        learned = adaround(layer, INT4, nearest.params, moments(layer, [(image, image)]))

    def error(rounded: Rounded) -> float:
        left = INT4.decode(rounded.codes, rounded.params) - layer.weight
        return float(layer(image, left, None).square().sum())

    assert error(learned) < 0.5 * error(nearest)
    assert learned.method == "adaround"
    assert learned.params is nearest.params


def test_rounds_up_or_down_and_nowhere_else(layer_of: LayerOf, image: Tensor) -> None:
    layer = layer_of(nn.Conv2d(4, 8, 3, padding=1, groups=2), image)
    full = INT4.min_max(layer.weight)
    params = QuantParams(full.scale * 0.7, full.zero_point)  # some weights are clipped
    codes = adaround(layer, INT4, params, moments(layer, [(image, image)]), iterations=300).codes
    real = (layer.weight / params.scale).clamp(INT4.qmin, INT4.qmax)
    assert ((codes - real).abs() < 1).all()
    assert codes.dtype == torch.int8


def test_is_decided_in_the_end(
    layer_of: LayerOf, image: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = layer_of(nn.Conv2d(4, 8, 3, padding=1), image)
    seen, found, learn = moments(layer, [(image, image)]), [], module._learn

    def keep(*args: object) -> Tensor:
        found.append(learn(*args))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(module, "_learn", keep)
    params = INT4.min_max(layer.weight)
    first = adaround(layer, INT4, params, seen).codes
    assert float(((found[0] > 0.01) & (found[0] < 0.99)).float().mean()) < 0.01
    assert torch.equal(first, adaround(layer, INT4, params, seen).codes)


def test_can_start_from_the_moved_weight(layer_of: LayerOf) -> None:
    exact = torch.randn(2048, 6) @ torch.randn(6, 6)
    x = exact + 0.7 * torch.randn(2048, 6)
    layer = layer_of(nn.Linear(6, 4, bias=False), x)
    spec = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)
    seen, params = moments(layer, [(exact, x)]), spec.min_max(layer.weight)
    moved = adaround(layer, spec, params, seen, moved=True, iterations=300)
    real = moved_matrix(layer, seen)[0].float() / params.scale
    assert ((moved.codes - real.clamp(spec.qmin, spec.qmax)).abs() < 1.001).all()
    assert not torch.equal(moved.codes, adaround(layer, spec, params, seen, iterations=300).codes)
