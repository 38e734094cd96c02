"""The search for scales: never worse than the full range, and what it gains where it should."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec
from qcompile.passes.quantization.rounding import clip_search, round_to_nearest


def per_channel_spec(bits: int = 8) -> QuantSpec:
    return QuantSpec(bits=bits, granularity=Granularity.PER_CHANNEL, axis=0)


@given(
    seed=st.integers(0, 1 << 16),
    shape=st.sampled_from([(3, 5), (4, 2, 3), (4, 1, 3, 3), (1, 1)]),
    bits=st.sampled_from([2, 3, 4, 8]),
    per_channel=st.booleans(),
    power=st.sampled_from([1, 3]),
)
def test_never_worse_than_min_max(
    seed: int, shape: tuple[int, ...], bits: int, per_channel: bool, power: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) ** power
    importance = torch.rand(shape[:2], generator=generator)
    importance = importance.reshape(*shape[:2], *[1] * (len(shape) - 2))
    spec = per_channel_spec(bits) if per_channel else QuantSpec(bits=bits)

    def error(params: QuantParams) -> torch.Tensor:
        square = (weight - spec.fake_quantize(weight, params)).square() * importance
        return square.flatten(1).sum(1) if per_channel else square.sum()

    full, found = spec.min_max(weight), clip_search(weight, spec, importance)
    assert (error(found) <= error(full) * (1 + 1e-5)).all()
    assert (found.scale <= full.scale).all()
    assert (found.scale > 0).all()


def test_clips_an_outlier_where_it_does_not_matter() -> None:
    weight = torch.linspace(-1, 1, 64).repeat(2, 1)
    weight[:, 7] = 1.5
    unimportant = torch.ones(2, 64)
    unimportant[0, 7] = 0
    spec = per_channel_spec(4)
    scale = clip_search(weight, spec, unimportant).scale.flatten()
    assert float(scale[0]) == pytest.approx(1.0 / 7, rel=0.05)
    assert scale[1] > scale[0]


def test_zeros_stay_zeros() -> None:
    rounded = round_to_nearest(torch.zeros(3, 4), per_channel_spec(), torch.ones(1, 4))
    assert not rounded.codes.any()
    assert rounded.method == "nearest"


@given(
    seed=st.integers(0, 1 << 16),
    shape=st.sampled_from([(3, 8), (4, 4, 3), (4, 8, 3, 2)]),
    text=st.sampled_from(
        ["int4 full per_group(1,4)", "uint4 asym per_group(1,4)", "uint4 asym per_channel(0)"]
    ),
    half=st.booleans(),
)
def test_blocks_are_searched_one_by_one(
    seed: int, shape: tuple[int, ...], text: str, half: bool
) -> None:
    draw = torch.Generator().manual_seed(seed)
    spec = QuantSpec.parse(text + (" fp16-scale" if half else ""))
    weight = torch.randn(shape, generator=draw) ** 3
    importance = torch.rand(shape[:2], generator=draw).reshape(*shape[:2], *[1] * (len(shape) - 2))
    full, found = spec.min_max(weight), clip_search(weight, spec, importance)
    assert found.scale.shape == found.zero_point.shape == full.scale.shape
    if half:
        assert torch.equal(found.scale, found.scale.half().float())
        assert float(found.scale.min()) >= 2.0**-14

    def error(params: QuantParams) -> torch.Tensor:
        square = (weight - spec.fake_quantize(weight, params)).square() * importance
        rows = square.reshape(shape[0], -1)
        return rows.reshape(shape[0], full.scale.numel() // shape[0], -1).sum(2)

    assert (error(found) <= error(full) * (1 + 1e-5)).all()


def test_full_range_is_never_worse() -> None:
    """Each scale of -7..7 is one of -8..7 too, which clips less."""
    weight, ones = torch.randn(16, 64), torch.ones(1, 1)
    kinds = {}
    for kind in ("sym", "full"):
        spec = QuantSpec.parse(f"int4 {kind} per_group(1,16) fp16-scale")
        rounded = round_to_nearest(weight, spec, ones)
        kinds[kind] = float((rounded.decoded - weight).square().sum())
        assert int(rounded.codes.min()) == spec.qmin
    assert kinds["full"] < 0.98 * kinds["sym"]
