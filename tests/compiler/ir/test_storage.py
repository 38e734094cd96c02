"""Half-precision scales, and blocks that share a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.ir.storage import half_scale, spread, to_half


@given(st.lists(st.floats(2.0**-14, 65504, width=32), min_size=1, max_size=20).map(torch.tensor))
def test_half_scale_is_the_next_float16(wanted: torch.Tensor) -> None:
    found = half_scale(wanted)
    assert torch.equal(found, to_half(found))
    assert bool((found >= wanted).all())
    assert bool((found <= wanted * (1 + 2.0**-10)).all())
    assert torch.equal(half_scale(found), found)


def test_half_scale_stays_normal_and_finite() -> None:
    found = half_scale(torch.tensor([0.0, 1e-9, 1e9]))
    assert found.tolist() == [2.0**-14, 2.0**-14, 65504.0]


@given(st.integers(-255, 255), st.integers(1 << 10, (1 << 11) - 1))
def test_products_of_codes_and_scales_are_rounded_once(code: int, digits: int) -> None:
    scale = digits * 2.0**-14
    found = to_half(torch.tensor(float(code)) * torch.tensor(scale))
    assert float(found) == float(np.float16(code * scale))  # numpy rounds from float64 at once


def test_spread_repeats_blocks() -> None:
    blocks = torch.tensor([[1.0, 2.0]])
    assert spread(blocks, (2, 4)).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


def test_spread_needs_the_rank() -> None:
    with pytest.raises(ValueError, match="zip"):
        spread(torch.ones(2), (2, 2))
