"""Error feedback into block formats, against the recursion in float64, column by column.

Where two levels are almost as near, float32 may choose the other one, and then all columns behind differ. So
the reference follows the choices that were made, and asks of each whether it was the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.affine import AffineFormat
from qcompile.compiler.ir.blocks.bits import split_bits
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import present
from qcompile.compiler.ir.blocks.lattice import LatticeFormat
from qcompile.passes.quantization import block_feedback
from qcompile.passes.quantization.block_feedback import feed_back
from qcompile.passes.quantization.block_moments import Moments

ONE_SCALE = ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
AFFINE = ONE_SCALE + K_QUANTS
LATTICE = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
ALL = AFFINE + LATTICE


def correlated(columns: int, seed: int) -> Moments:
    """Inputs that are correlated and of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    sizes = torch.rand(columns, generator=generator).exp()
    inputs = torch.randn(2 * columns, columns, generator=generator) @ (mix + torch.eye(columns))
    return of(inputs * sizes)


def of(inputs: Tensor) -> Moments:
    hessian = inputs.T @ inputs
    return Moments(len(inputs), hessian, torch.zeros_like(hessian), torch.zeros_like(hessian))


def weight_like(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / 20


@dataclass(frozen=True)
class Rounded:
    """A rounded weight, and what the reference says of it; all float64 ``[rows, columns]``.

    Args:
        format: Of the blocks.
        data: The blocks.
        upper: The factor.
        values: What they decode to.
        seen: The weights as they were when each column's turn came.
        errors: Of each column, divided by the factor's diagonal.
    """

    format: AffineFormat | LatticeFormat
    data: Tensor
    upper: Tensor
    values: Tensor
    seen: Tensor
    errors: Tensor

    def entered(self, start: int, end: int, weight: Tensor) -> Tensor:
        """Return some columns as they were when the walk reached the first of them."""
        return (
            weight.double()[:, start:end] - self.errors[:, :start] @ self.upper[:start, start:end]
        )


def rounded(name: str, weight: Tensor, moments: Moments) -> Rounded:
    block_format = BLOCK_FORMATS[name]
    assert isinstance(block_format, AffineFormat | LatticeFormat)
    factor = moments.upper()
    data = feed_back(weight, factor, block_format)
    values, upper = block_format.decode(data).double(), factor.double()
    current, errors = weight.double().clone(), torch.zeros(weight.shape, dtype=torch.float64)
    for j in range(weight.shape[1]):
        errors[:, j] = (current[:, j] - values[:, j]) / upper[j, j]
        current[:, j + 1 :] -= errors[:, j, None] * upper[j, j + 1 :]
    return Rounded(block_format, data, upper, values, current, errors)


def levels(block_format: AffineFormat) -> Tensor:
    signed = block_format.name == "Q8_0"
    codes = torch.arange(-128 if signed else 0, 128 if signed else block_format.highest + 1)
    return block_format.level(codes).double()


@pytest.mark.parametrize("name", AFFINE)
def test_each_number_is_the_nearest_to_its_column_after_the_feedback(name: str) -> None:
    width = max(128, 2 * BLOCK_FORMATS[name].block)
    weight = weight_like(6, width)
    found = rounded(name, weight, correlated(width, 1))
    assert isinstance(found.format, AffineFormat)
    step, low = found.format.steps(found.format.unpack(found.data))
    x = found.seen.reshape(*step.shape, found.format.run)
    choices = step.double()[..., None] * levels(found.format)
    choices = choices - (0 if low is None else low.double()[..., None])
    least = (x[..., None] - choices[..., None, :]).abs().amin(-1)
    lost = (x - found.values.reshape(x.shape)).abs()
    assert (lost <= least + 1e-4 * step.abs()[..., None]).all()
    assert (found.seen - weight).abs().max() > step.abs().mean()  # the feedback moved them


@pytest.mark.parametrize("name", ONE_SCALE)
def test_scales_are_the_encoders_for_the_block_as_it_is_entered(name: str) -> None:
    weight = weight_like(16, 128)
    found = rounded(name, weight, correlated(128, 2))
    fields, same = found.format.unpack(found.data), []
    for start in range(0, 128, 32):
        x = found.entered(start, start + 32, weight).float()
        costs = found.upper.diagonal()[start : start + 32].square().reciprocal().float()
        wanted = found.format.fit(x, found.format.importance(x, costs.expand_as(x)))
        d = present(fields.d).reshape(16, -1)[:, start // 32]
        same.append(torch.isclose(d, present(wanted.d), rtol=2**-9, atol=0.0))
    assert torch.cat(same).sum() >= 62  # of 64: some tries are as good as others


@pytest.mark.parametrize("name", LATTICE)
def test_each_vector_is_the_cheapest_with_its_signs(name: str) -> None:
    """An error of a group costs what the columns behind cannot answer: e (U^T U)^-1 e^T."""
    weight = weight_like(6, 256)
    found = rounded(name, weight, correlated(256, 3))
    assert isinstance(found.format, LatticeFormat)
    fields, size = found.format.unpack(found.data), found.format.grid.shape[1]
    step = found.format.steps(fields).double()
    signs = 1 - 2 * split_bits(present(fields.signs), 1, 1).double()
    for start in range(0, 256, size):
        here = slice(start, start + size)
        x = found.entered(start, here.stop, weight)
        inverse = torch.linalg.inv(found.upper[here, here])
        vectors = step[:, start // found.format.run, None, None] * found.format.grid.double()
        errors = x[:, None] - vectors * signs[:, None, here]
        costs = (errors @ inverse).square().sum(2)
        chosen = ((x - found.values[:, here]) @ inverse).square().sum(1)
        assert (chosen <= costs.amin(1) * 1.0001).all()


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 1 << 30))
@settings(max_examples=2, deadline=None)
def test_outputs_are_nearer_than_those_of_the_encoder(name: str, seed: int) -> None:
    moments, weight = correlated(256, seed), weight_like(12, 256, seed)
    block_format = BLOCK_FORMATS[name]
    assert isinstance(block_format, AffineFormat | LatticeFormat)
    alone = block_format.decode(block_format.encode(weight, moments.importance))
    together = block_format.decode(feed_back(weight, moments.upper(), block_format))
    first, second = moments.judge(weight, [together, alone]).own
    assert first < 0.8 * second


@pytest.mark.parametrize("name", ALL)
def test_other_readers_decode_the_same_numbers(name: str) -> None:
    gguf = pytest.importorskip("gguf")
    width = 2 * BLOCK_FORMATS[name].block
    found = rounded(name, weight_like(3, width), correlated(width, 4))
    theirs = gguf.quants.dequantize(found.data.numpy(), gguf.GGMLQuantizationType[name])
    assert torch.equal(torch.from_numpy(theirs).double(), found.values)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ2_XS", "IQ3_XXS"])
def test_rows_are_rounded_by_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts of another size sums may have another order; few codes may be at a tie."""
    weight, moments = weight_like(24, 256), correlated(256, 5)
    block_format = BLOCK_FORMATS[name]
    assert isinstance(block_format, AffineFormat | LatticeFormat)
    whole = feed_back(weight, moments.upper(), block_format)
    monkeypatch.setattr(block_feedback, "MOST_ROWS", 8)
    parts = feed_back(weight, moments.upper(), block_format)
    assert ((parts != whole).any(1)).sum() <= 2
    errors = moments.judge(weight, [block_format.decode(data) for data in (whole, parts)]).own
    assert errors[1] == pytest.approx(errors[0], rel=0.01)


@pytest.mark.parametrize("name", ["Q4_K", "IQ2_XS"])
def test_bytes_do_not_depend_on_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, upper = weight_like(24, 256), correlated(256, 6).upper()
    block_format = BLOCK_FORMATS[name]
    assert isinstance(block_format, AffineFormat | LatticeFormat)
    monkeypatch.setattr(block_feedback, "MOST_ROWS", 8)
    beside = feed_back(weight, upper, block_format)
    monkeypatch.setattr(
        block_feedback, "each", lambda function, items: [function(i) for i in items]
    )
    assert torch.equal(feed_back(weight, upper, block_format), beside)


def test_the_weight_is_left_as_it_was() -> None:
    weight, block_format = weight_like(4, 256), BLOCK_FORMATS["Q4_K"]
    assert isinstance(block_format, AffineFormat)
    kept = weight.clone()
    feed_back(weight, correlated(256, 7).upper(), block_format)
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("name", ALL)
def test_rows_of_zeros_stay(name: str) -> None:
    weight = weight_like(4, 256)
    weight[1] = 0
    values = rounded(name, weight, correlated(256, 8)).values
    assert not values[1].any()
    assert values[[0, 2, 3]].any(1).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "Q4_K", "IQ2_XXS", "IQ3_S"])
def test_inputs_that_are_always_zero_do_no_harm(name: str) -> None:
    """Whole blocks of 32 and single columns; what their weights become is for nobody to see."""
    inputs = torch.randn(300, 256)
    inputs[:, 64:96] = 0
    inputs[:, 5::16] = 0
    moments, weight = of(inputs), weight_like(8, 256)
    found = rounded(name, weight, moments)
    assert found.values.isfinite().all()
    assert found.values.abs().max() < 3 * weight.abs().max()
    alone = found.format.decode(found.format.encode(weight, moments.importance))
    first, second = moments.judge(weight, [found.values.float(), alone]).own
    assert first < second


@pytest.mark.parametrize("name", ALL)
def test_without_correlation_nothing_is_fed_back(name: str) -> None:
    """Then each number is the nearest, and scales are tried besides: errors are the encoder's at most."""
    block_format, width = BLOCK_FORMATS[name], BLOCK_FORMATS[name].block
    assert isinstance(block_format, AffineFormat | LatticeFormat)
    weight = weight_like(16, width)
    values = block_format.decode(feed_back(weight, torch.eye(width), block_format))
    plain = block_format.decode(block_format.encode(weight, torch.ones(width)))
    errors = [(v - weight).square().sum() for v in (values, plain)]
    assert 0.8 * errors[1] < errors[0] <= 1.0001 * errors[1]
    if name in ONE_SCALE:
        assert (values != plain).float().mean() < 0.03  # ggml's Q8_0 rounds before d is float16
