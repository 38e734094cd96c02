"""The joint search: never a larger error than the encoder's, and the errors that were measured for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.joint_search import encode_jointly, improvable

FORMATS = [format for format in BLOCK_FORMATS.values() if improvable(format)]
REACHED = {"Q2_K": 0.82, "Q3_K": 0.95, "Q4_K": 0.97, "Q5_K": 0.93, "Q6_K": 0.98, "IQ4_XS": 1.0}
"""Of the encoder's squared error, on normal numbers; decision 013 has what it is on weights of a model."""


def errors(format: AffineFormat, rows: Tensor, data: Tensor) -> Tensor:
    lost = format.decode(data) - rows
    return lost.double().square().reshape(-1, format.block).sum(1)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_errors_are_as_small_as_was_measured(format: AffineFormat) -> None:
    rows = torch.randn(32, 512, generator=torch.Generator().manual_seed(1)) * 0.02
    before = errors(format, rows, format.encode(rows)).sum()
    after = errors(format, rows, encode_jointly(format, rows)).sum()
    assert after < REACHED[format.name] * before


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(FORMATS),
    st.integers(0, 2**31),
    st.sampled_from([1e-8, 1e-3, 1.0, 900.0]),
    st.sampled_from(["normal", "positive", "few", "equal", "zero"]),
)
def test_no_block_gets_worse(format: AffineFormat, seed: int, size: float, kind: str) -> None:
    rows = torch.randn(3, 512, generator=torch.Generator().manual_seed(seed)) * size
    if kind == "positive":
        rows = rows.abs() + size
    elif kind == "few":
        rows = torch.where(rows > 2 * size, rows, 0)
    elif kind == "equal":
        rows = torch.full_like(rows, size)
    elif kind == "zero":
        rows[1] = 0
    before, after = format.encode(rows), encode_jointly(format, rows)
    worse = errors(format, rows, after) - errors(format, rows, before)
    assert float(worse.max()) <= 1e-5 * float(errors(format, rows, before).max())
    assert after.shape == before.shape


def test_zeros_stay_as_ggml_writes_them() -> None:
    for format in FORMATS:
        rows = torch.zeros(2, 256)
        assert torch.equal(encode_jointly(format, rows), format.encode(rows)), format.name


def test_what_has_no_integers_is_left_to_its_encoder() -> None:
    assert {format.name for format in FORMATS} == REACHED.keys()
