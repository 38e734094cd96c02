"""Activations without negative values get all 256 codes where the emitter asks for symmetric ones."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.quant import QuantSpec
from qcompile.passes.quantization.quantizer import without_unused_sign

SYMMETRIC = QuantSpec(signed=True, symmetric=True, scale_bits=16)


def test_values_without_a_sign_have_codes_without_one() -> None:
    found = without_unused_sign(SYMMETRIC, [torch.tensor([0.0, 3.0]), torch.tensor([6.0])])
    assert (found.qmin, found.qmax) == (0, 255)
    assert not found.signed
    assert (found.bits, found.scale_bits) == (SYMMETRIC.bits, SYMMETRIC.scale_bits)


def test_one_negative_value_in_any_batch_keeps_the_sign() -> None:
    batches = [torch.tensor([0.0, 3.0]), torch.tensor([6.0, -1e-6])]
    assert without_unused_sign(SYMMETRIC, batches) == SYMMETRIC
    assert (SYMMETRIC.qmin, SYMMETRIC.qmax) == (-127, 127)


def test_asymmetric_codes_have_a_zero_point_instead() -> None:
    spec = QuantSpec(signed=True, symmetric=False)
    assert without_unused_sign(spec, [torch.tensor([0.0, 3.0])]) == spec


def test_minus_zero_and_nan_are_not_negative() -> None:
    found = without_unused_sign(SYMMETRIC, [torch.tensor([-0.0, torch.nan])])
    assert not found.signed


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=8))
@settings(max_examples=15)
def test_a_step_is_half_as_large(values: list[float]) -> None:
    """Of values up to the largest, none is clipped, and the error is at most half a step of 1/255."""
    batch = torch.tensor([*values, 1.0])
    spec = without_unused_sign(SYMMETRIC, [batch])
    step = float(batch.max()) / spec.qmax
    codes = (batch / step).round()
    assert bool(((codes >= spec.qmin) & (codes <= spec.qmax)).all())
    assert float((codes * step - batch).abs().max()) <= step * 0.501
