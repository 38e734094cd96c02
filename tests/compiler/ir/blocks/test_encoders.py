"""Encoders: ggml's bytes where they are known, errors below those of plain rounding, refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import fallback

FLOATS = ["F32", "F16", "BF16"]
PLAIN = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
SEARCHED = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
LATTICE = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
NAMES = FLOATS + PLAIN + SEARCHED + LATTICE

RELATIVE_ERRORS = {
    "Q2_K": 32.5, "Q3_K": 17.61, "Q4_K": 8.157, "Q5_K": 4.125, "Q6_K": 2.17, "IQ4_NL": 9.07,
    "IQ4_XS": 9.2, "IQ2_XXS": 43.2, "IQ2_XS": 36.5, "IQ2_S": 32.1, "IQ3_XXS": 24.66, "IQ3_S": 18.7,
}  # fmt: skip
"""Of libggml's encoders without weights, in percent (FORMATS A.1.8)."""


def weights_like(rows: int, width: int, seed: int) -> Tensor:
    """Gaussian with a few columns five times as large."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    x[:, ::100] *= 5
    return x


def error(name: str, x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the squared error of ``x`` in a format, weighted by ``weights``, found with them."""
    values = BLOCK_FORMATS[name].decode(BLOCK_FORMATS[name].encode(x, weights))
    return ((values - x).square() * (1 if weights is None else weights)).sum()


@pytest.mark.parametrize("name", FLOATS + PLAIN)
@given(
    rows=st.integers(1, 20),
    blocks=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 1.0]),
)
@settings(max_examples=15, deadline=None)
def test_plain_encoders_write_the_bytes_of_the_gguf_package(
    name: str, rows: int, blocks: int, seed: int, scale: float, shift: float
) -> None:
    gguf = pytest.importorskip("gguf")
    x = scale * (weights_like(rows, 32 * blocks, seed) + shift)
    x[0, :32] = 0
    theirs = gguf.quants.quantize(x.numpy(), gguf.GGMLQuantizationType[name])
    ours = BLOCK_FORMATS[name].encode(x)
    assert ours.numpy().tobytes() == theirs.tobytes()


@pytest.mark.parametrize("name", FLOATS + PLAIN)
@given(seed=st.integers(0, 1 << 30), scale=st.sampled_from([1e-3, 1.0, 300.0]))
@settings(max_examples=10, deadline=None)
def test_what_was_decoded_is_encoded_to_the_same_values(name: str, seed: int, scale: float) -> None:
    block_format = BLOCK_FORMATS[name]
    once = block_format.decode(block_format.encode(scale * weights_like(4, 64, seed)))
    again = block_format.decode(block_format.encode(once))
    torch.testing.assert_close(again, once, rtol=2**-10, atol=0.0)


@pytest.mark.parametrize("name", ["Q2_K", "Q4_K", "Q6_K", *LATTICE])
def test_a_search_finds_values_that_the_format_can_hold(name: str) -> None:
    once = BLOCK_FORMATS[name].decode(BLOCK_FORMATS[name].encode(weights_like(8, 1024, 11)))
    assert error(name, once) < 1e-5 * once.square().sum()


def plain_rounding(name: str, x: Tensor) -> Tensor:
    """Return the squared error of rounding to a grid from the least to the largest value of a run.

    Scales are not rounded, which flatters it: so it has 1 % on top.
    """
    block_format = BLOCK_FORMATS[name]
    run = block_format.run if isinstance(block_format, AffineFormat) else 32
    groups = x.reshape(-1, run)
    if name in ("Q2_K", "Q4_K", "Q5_K", "Q4_1", "Q5_1"):
        assert isinstance(block_format, AffineFormat)
        low = groups.amin(1, keepdim=True).clamp(max=0)
        step = (groups.amax(1, keepdim=True) - low) / block_format.highest
        return 1.01 * ((((groups - low) / step).round() * step + low) - groups).square().sum()
    half = 1 << (round(block_format.bits_per_weight(())) - 1)
    half = {"Q3_K": 4, "Q6_K": 32, "Q4_0": 8, "Q5_0": 16, "Q8_0": 128}.get(name, half)
    step = groups.abs().amax(1, keepdim=True) / (half - 1)
    return 1.01 * ((groups / step).round() * step - groups).square().sum()


@pytest.mark.parametrize("name", PLAIN + SEARCHED)
def test_an_encoder_is_no_worse_than_rounding_between_least_and_largest(name: str) -> None:
    x = weights_like(16, 1024, 3)
    assert error(name, x) <= plain_rounding(name, x)


@pytest.mark.parametrize("name", SEARCHED + LATTICE)
def test_errors_are_at_most_those_measured_of_ggml(name: str) -> None:
    x = weights_like(16, 4096, 5)
    relative = 100 * (error(name, x) / x.square().sum()).sqrt()
    assert relative < 1.02 * RELATIVE_ERRORS[name]


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", *SEARCHED, *LATTICE])
def test_weights_lower_the_error_that_they_weigh(name: str) -> None:
    x = weights_like(8, 1024, 7)
    weights = torch.rand(1024) ** 4
    values = BLOCK_FORMATS[name].decode(BLOCK_FORMATS[name].encode(x))
    unweighted = ((values - x).square() * weights).sum()
    assert error(name, x, weights) < 0.95 * unweighted


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_encoded_alone_and_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block_format, x, weights = BLOCK_FORMATS[name], weights_like(4, 512, 9), torch.rand(512)
    whole = block_format.encode(x, weights)
    monkeypatch.setattr("qcompile.compiler.ir.blocks.format.DONE_AT_ONCE", 3 * block_format.block)
    parts = torch.cat([block_format.encode(row[None], weights) for row in x])
    if name not in LATTICE:
        assert torch.equal(parts, whole)
        return
    # Products of matrices are added in an order that depends on their size: ties may break otherwise.
    errors = [((block_format.decode(p) - x).square() * weights).sum() for p in (parts, whole)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-30, -3e-6])
def test_constant_rows(name: str, value: float) -> None:
    """A constant is met to a step of the format; a number too small for float16 may become 0."""
    block_format = BLOCK_FORMATS[name]
    values = block_format.decode(block_format.encode(torch.full((2, 256), value)))
    assert values.isfinite().all()
    assert (values - value).abs().max() <= (0.2 * abs(value) if abs(value) > 1e-3 else 4e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_refused(name: str, value: float) -> None:
    x = torch.ones(2, 256)
    x[1, 7] = value
    with pytest.raises(ValueError, match=r"1 of 512 values are not finite, .* at \[1, 7\]"):
        BLOCK_FORMATS[name].encode(x)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("F32", "BF16")])
@pytest.mark.parametrize("value", [1e12, 1e30])
def test_values_that_float16_scales_cannot_reach_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"too large for \w+, whose .* use F32"):
        BLOCK_FORMATS[name].encode(torch.full((1, 256), value))


def test_weights_are_checked() -> None:
    q4_k, x = BLOCK_FORMATS["Q4_K"], torch.ones(1, 256)
    with pytest.raises(ValueError, match="weights are not finite and not negative"):
        q4_k.encode(x, torch.full((256,), -1.0))
    with pytest.raises(ValueError, match=r"weights \[128\] do not fit values \[1, 256\]"):
        q4_k.encode(x, torch.ones(128))


def test_shapes_are_checked() -> None:
    q4_k = BLOCK_FORMATS["Q4_K"]
    with pytest.raises(ValueError, match=r"blocks of 256, and a row of 896 .* use Q5_0, which"):
        q4_k.encode(torch.ones(1, 896))
    with pytest.raises(ValueError, match=r"encodes rows \[rows, in\], not \[2, 2, 256\]"):
        q4_k.encode(torch.ones(2, 2, 256))
    with pytest.raises(ValueError, match="blocks of 144 bytes"):
        q4_k.decode(torch.zeros(1, 100, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 896, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q2_K", 576, "Q4_0"),
        ("Q3_K", 576, "Q4_0"),
        ("IQ4_XS", 576, "IQ4_NL"),
        ("IQ2_XXS", 576, "IQ4_NL"),
        ("IQ4_NL", 576, "IQ4_NL"),
        ("IQ4_NL", 100, "F16"),
        ("Q4_K", 100, "F16"),
        ("BF16", 100, "BF16"),
    ],
)
def test_fallback_is_that_of_ggml(name: str, width: int, expected: str) -> None:
    assert fallback(name, width) == expected
    BLOCK_FORMATS[expected].check_width(width)
