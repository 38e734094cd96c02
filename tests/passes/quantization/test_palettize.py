"""Palettes: the least weighted error, stored entries, and against plain k-means."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qcompile.compiler.ir.palette import Entries, PaletteSpec
from qcompile.compiler.ir.quant import parse_weight_spec
from qcompile.passes.quantization.gptq import Moments, as_matrix, moments
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.palette_feedback import feedback, refit
from qcompile.passes.quantization.palettize import code_weight, palettize
from qcompile.passes.quantization.rounding import Palettized, Rounded

LayerOf = Callable[[nn.Module, Tensor], Layer]


def lloyd(weight: Tensor, size: int) -> Tensor:
    """A tensor of entries of plain k-means: one table, every weight counts the same."""
    x = weight.flatten().double()
    centers = torch.quantile(x, (torch.arange(size) + 0.5).double() / size)
    for _ in range(100):
        nearest = (x[:, None] - centers).abs().argmin(1)
        mass = torch.zeros(size).double().index_add_(0, nearest, torch.ones_like(x))
        moment = torch.zeros(size).double().index_add_(0, nearest, x)
        centers = torch.where(mass > 0, moment / mass.clamp(min=1), centers)
    return centers[(x[:, None] - centers).abs().argmin(1)].half().float().reshape(weight.shape)


def skewed(*shape: int) -> Tensor:
    """Inputs with much in common whose channels (axis 1) differ in size, as behind an activation."""
    sizes = torch.linspace(0.1, 3, shape[1])
    mixing = (torch.randn(shape[1], shape[1]) * 0.4 + 0.5) * sizes
    return torch.einsum("nc...,cd->nd...", torch.randn(*shape), mixing).relu()


def output_error(layer: Layer, x: Tensor, decoded: Tensor) -> float:
    difference = layer(x, decoded, None) - layer(x, layer.weight, None)
    return float(difference.square().sum())


@settings(max_examples=15)
@given(
    st.sampled_from(
        ["palette1 fp16 per_tensor", "palette3 int8 per_channels(3)", "palette4 int8 per_tensor"]
    ),
    st.booleans(),
    st.sampled_from([(6, 40), (6, 4, 3), (6, 2, 3, 3)]),
    st.integers(0, 2**31),
)
def test_what_is_stored(text: str, scaled: bool, shape: tuple[int, ...], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    spec = PaletteSpec.parse(text + (" channel-scale" if scaled else ""))
    weight = torch.randn(shape, generator=draw)
    importance = torch.rand(shape[:2], generator=draw).reshape(*shape[:2], *[1] * (len(shape) - 2))
    found = palettize(weight, spec, importance)
    params = found.params
    assert params.lut.shape == (spec.groups(shape), spec.size)
    assert torch.equal(params.lut, params.lut.sort(1).values)
    assert torch.equal(params.lut, params.lut.half().float())
    assert int(found.codes.max()) < spec.size
    assert torch.equal(found.codes, spec.encode(weight, params))
    assert (params.scale is not None) == scaled
    if params.scale is not None:
        assert torch.equal(params.scale, params.scale.half().float())
        assert float(params.scale.min()) >= 2.0**-14
    assert (params.lut_codes is not None) == (spec.entries is Entries.INT8)
    if params.lut_codes is not None and params.lut_scale is not None:
        exact = params.lut_codes.float() * params.lut_scale
        assert torch.equal(exact.half().float(), params.lut)
        assert params.lut_scale.half().float() == params.lut_scale


def test_important_weights_are_nearer() -> None:
    weight, importance = torch.randn(8, 64), torch.ones(1, 64)
    importance[:, :8] = 100.0
    spec = PaletteSpec(bits=3)

    def error(found: Palettized) -> Tensor:
        return (found.decoded - weight).square().mean(0)

    aimed, plain = palettize(weight, spec, importance), palettize(weight, spec, torch.ones(1, 1))
    assert error(aimed)[:8].mean() < 0.8 * error(plain)[:8].mean()
    assert (error(aimed) * importance).sum() < (error(plain) * importance).sum()
    assert error(plain).sum() < error(aimed).sum()


def test_is_no_worse_than_plain_k_means_where_all_weights_count_the_same() -> None:
    weight = torch.randn(16, 48) ** 3
    found = palettize(weight, PaletteSpec(), torch.ones(1, 1)).decoded
    plain = lloyd(weight, 16)
    assert (found - weight).square().sum() <= (plain - weight).square().sum() * 1.0001


def test_inputs_that_are_always_zero() -> None:
    weight = torch.randn(4, 8)
    found = palettize(weight, PaletteSpec(bits=6), torch.zeros(1, 8))
    torch.testing.assert_close(found.decoded, weight, rtol=1e-3, atol=1e-3)


def test_channel_scales_follow_rows_of_different_sizes() -> None:
    weight = torch.randn(8, 64) * torch.logspace(-2, 1, 8)[:, None]
    scaled = palettize(weight, PaletteSpec(channel_scale=True), torch.ones(1, 1))
    plain = palettize(weight, PaletteSpec(), torch.ones(1, 1))

    def relative(found: Palettized) -> Tensor:
        return (found.decoded - weight).square().sum(1) / weight.square().sum(1)

    assert float(relative(scaled).max()) < 0.03
    assert float(relative(plain).max()) > 0.5


def test_kinds_of_formats() -> None:
    weight = torch.randn(4, 8)
    assert isinstance(code_weight(weight, PaletteSpec(), torch.ones(1, 1)), Palettized)
    assert isinstance(
        code_weight(weight, parse_weight_spec("int8 sym per_tensor"), torch.ones(1, 1)), Rounded
    )


@pytest.mark.parametrize(
    "text", ["palette2 fp16 per_channels(4)", "palette3 int8 per_tensor channel-scale"]
)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (lambda: nn.Linear(24, 8), (256, 24)),
        (lambda: nn.Conv2d(8, 8, 3, padding=1), (8, 8, 8, 8)),
        (lambda: nn.Conv1d(8, 8, 3, groups=2), (8, 8, 20)),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), (8, 8, 8, 8)),
    ],
)
def test_each_step_lowers_the_error(
    layer_of: LayerOf, module: Callable[[], nn.Module], shape: tuple[int, ...], text: str
) -> None:
    x = skewed(*shape)
    layer, spec = layer_of(module(), x), PaletteSpec.parse(text)
    seen = moments(layer, [(x, x)])
    start = palettize(layer.weight, spec, layer.importance([x]))
    fed = feedback(layer, start, seen)
    fitted = refit(layer, fed, seen)
    assert fitted is not None
    assert fed.params is start.params
    assert torch.equal(fitted.params.lut, fitted.params.lut.sort(1).values)
    assert (start.method, fed.method, fitted.method) == ("k-means", "gptq", "gptq+refit")
    errors = [output_error(layer, x, found.decoded) for found in (start, fed, fitted)]
    assert errors[2] < min(errors[0], errors[1] * 1.01)
    plain = output_error(layer, x, lloyd(layer.weight, spec.size))
    assert errors[2] < 0.75 * plain


def test_moved_feedback_makes_up_for_the_input(layer_of: LayerOf) -> None:
    exact = skewed(4096, 8)
    x = exact + 0.5 * torch.randn(4096, 8)
    layer = layer_of(nn.Linear(8, 8, bias=False), x)
    seen = moments(layer, [(exact, x)])
    start = palettize(layer.weight, PaletteSpec(bits=6), layer.importance([x]))
    moved = feedback(layer, start, seen, moved=True)
    wanted = layer(exact, layer.weight, None)

    def error(found: Palettized) -> float:
        return float((layer(x, found.decoded, None) - wanted).square().sum())

    assert moved.method == "gptaq"
    assert error(moved) < error(feedback(layer, start, seen))


def test_refit_solves_for_the_entries(layer_of: LayerOf) -> None:
    """No entry that is moved a little gives less error, up to rounding and damping."""
    x = skewed(512, 12)
    layer = layer_of(nn.Linear(12, 6, bias=False), x)
    seen = moments(layer, [(x, x)])
    start = palettize(layer.weight, PaletteSpec(bits=2, group_size=3), layer.importance([x]))
    found = refit(layer, start, seen)
    assert found is not None

    def cost(lut: Tensor) -> float:
        grouped = found.codes.reshape(2, -1).long()
        left = lut.double().gather(1, grouped).reshape(as_matrix(layer).shape) - as_matrix(layer)
        return float((left * (left @ seen.hessian)).sum())

    least = cost(found.params.lut)
    assert least < output_error(layer, x, start.decoded)
    for entry in range(4):
        for step in (-0.02, 0.02):
            lut = found.params.lut.clone()
            lut[1, entry] += step
            assert cost(lut) > least


def test_too_large_a_layer_keeps_its_tables(
    layer_of: LayerOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qcompile.passes.quantization.palette_feedback.WORK", 10)
    x = skewed(64, 8)
    layer = layer_of(nn.Linear(8, 4), x)
    seen: Moments = moments(layer, [(x, x)])
    assert refit(layer, palettize(layer.weight, PaletteSpec(2), torch.ones(1, 1)), seen) is None


def test_a_large_convolution_takes_seconds_not_minutes() -> None:
    weight = torch.randn(1280, 320, 1, 1)
    start = time.perf_counter()
    palettize(weight, PaletteSpec(bits=4, group_size=16), torch.rand(1, 320, 1, 1))
    assert time.perf_counter() - start < 20  # about 1 s alone
