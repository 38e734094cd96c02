"""Candidates for the factors of inputs, and what they are judged by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.passes.quantization.block_moments import Moments
from qcompile.passes.quantization.input_scales import JudgedRows, candidates, choose, judged_rows

ALL = torch.ones(256, dtype=torch.bool)
SAME = torch.arange(256)


def moments_of(x: Tensor) -> Moments:
    none = torch.zeros(()).expand(x.shape[1], x.shape[1])
    return Moments(len(x), x.T @ x, none, none)


def judged(x: Tensor, weight: Tensor, format: str) -> JudgedRows:
    parts = moments_of(x[: len(x) // 2]), moments_of(x[len(x) // 2 :])
    return judged_rows([weight], BLOCK_FORMATS[format], SAME, parts)


def columns_of(weight: Tensor) -> Tensor:
    return weight.double().square().mean(0)


@given(st.integers(0, 1000))
@settings(max_examples=10)
def test_what_sizes_a_norm_and_its_readers_have_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w, moved = (torch.rand(3, 256, generator=generator) * 6 - 3).double().exp()
    before = candidates(x.square(), w.square(), ALL)
    after = candidates((x * moved).square(), (w / moved).square(), ALL)
    for name in ("x^0 / w^1", "x^0.25 / w^0.75", "x^0.5 / w^0.5"):
        columns, again = w * before[name], w / moved * after[name]
        torch.testing.assert_close(again / again[0], columns / columns[0])


def test_outliers_alone_are_moved_to_the_median() -> None:
    w = torch.linspace(0.5, 1.5, 256).double()
    assert "outliers" not in candidates(torch.ones(256).double(), w.square(), ALL)
    w[7], w[100] = 1 / 30, 20.0
    factors = candidates(torch.ones(256).double(), w.square(), ALL)["outliers"]
    assert (factors != 1).nonzero().flatten().tolist() == [7, 100]
    sizes = w * factors
    assert sizes[7] == pytest.approx(1, rel=0.02)
    assert sizes[100] == pytest.approx(1, rel=0.02)


def test_channels_without_input_or_freedom_keep_factor_1() -> None:
    inputs, free = torch.rand(256).double() + 0.1, ALL.clone()
    inputs[3], free[5] = 0.0, False
    for factors in candidates(inputs, torch.rand(256).double() + 0.1, free).values():
        assert factors[3] == factors[5] == 1
        assert bool((factors > 0).all())


@pytest.mark.parametrize("format", ["Q4_K", "IQ4_XS"])
def test_the_error_is_that_of_the_output(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(600, 256), torch.randn(8, 256)
    rows, factors = judged(x, weight, format), torch.rand(256).double() + 0.5
    decode, decoded = type(rows.format).decode, torch.empty(0)

    def keep(self: BlockFormat, data: Tensor) -> Tensor:
        nonlocal decoded
        decoded = decode(self, data)
        return decoded

    monkeypatch.setattr(type(rows.format), "decode", keep)
    error = rows.error(factors, rows.fit.upper())
    output = x[300:] @ weight.T
    found = (x[300:] / factors.float()) @ decoded.T
    expected = (output - found).square().sum() / output.square().sum()
    assert error == pytest.approx(float(expected), rel=1e-3)


def test_nothing_is_kept_that_gains_nothing() -> None:
    weight = torch.randn(64, 256)
    choice = choose([judged(torch.randn(2000, 256), weight, "Q4_K")], columns_of(weight), ALL)
    assert choice.method == "none"
    assert bool((choice.factors == 1).all())
    assert len(choice.tried) == 5


def test_outliers_are_undone_and_judged_as_what_they_were() -> None:
    x, weight = torch.randn(2000, 256), torch.randn(64, 256)
    clean = judged(x, weight, "Q4_K")
    ones = torch.ones(256).double()
    usual = clean.error(ones, clean.fit.upper())
    moved = torch.ones(256)
    moved[5::32] = torch.linspace(10, 50, 8)
    bad = judged(x * moved, weight / moved, "Q4_K")
    choice = choose([bad], columns_of(weight / moved), ALL)
    assert bad.error(ones, bad.fit.upper()) > 1.3 * usual
    assert choice.method != "none"
    factors = choice.factors.float()
    undone = judged(x * moved / factors, weight / moved * factors, "Q4_K")
    assert undone.error(ones, undone.fit.upper()) < 1.1 * usual
