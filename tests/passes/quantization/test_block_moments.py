"""Moments against the outputs that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompile.passes.calibration.walk import Values
from qcompile.passes.quantization.block_moments import DAMPING, DRIFT_DAMPING, Moments, moments

COLUMNS = 24


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor]:
    """What the float graph and the quantized prefix give, 300 tokens."""
    drawn = torch.Generator().manual_seed(0)
    exact = torch.randn(300, COLUMNS, generator=drawn) @ torch.randn(
        COLUMNS, COLUMNS, generator=drawn
    )
    return exact, 0.9 * exact + 0.3 * torch.randn(300, COLUMNS, generator=drawn)


def of(inputs: tuple[Tensor, Tensor]) -> Moments:
    exact, quantized = inputs
    return moments(Values((exact,), (quantized,)), [0], judging=True)


def test_a_judgement_is_of_the_outputs(inputs: tuple[Tensor, Tensor]) -> None:
    drawn = torch.Generator().manual_seed(1)
    weight = torch.randn(7, COLUMNS, generator=drawn)
    roundings = [weight + s * torch.randn(7, COLUMNS, generator=drawn) for s in (0.01, 0.1)]
    exact, quantized = (values.double() for values in inputs)
    found = of(inputs).judge(weight, roundings)
    parts = of(inputs).judge(weight[:3], [r[:3] for r in roundings]) + of(inputs).judge(
        weight[3:], [r[3:] for r in roundings]
    )

    wanted = exact @ weight.double().T
    assert found.power == pytest.approx(float(wanted.square().sum()), rel=1e-4)
    for place, rounding in enumerate(roundings):
        error = quantized @ rounding.double().T - wanted
        own = quantized @ (rounding - weight).double().T
        assert found.errors[place] == pytest.approx(float(error.square().sum()), rel=1e-4)
        assert found.own[place] == pytest.approx(float(own.square().sum()), rel=1e-4)
        assert parts.errors[place] == pytest.approx(found.errors[place], rel=1e-5)
        assert parts.own[place] == pytest.approx(found.own[place], rel=1e-5)


def test_the_factor_of_the_inverse(inputs: tuple[Tensor, Tensor]) -> None:
    hessian = inputs[1].double().T @ inputs[1].double()
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(COLUMNS)
    upper = of(inputs).upper().double()

    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper, damped.inverse(), rtol=1e-3, atol=1e-6)


def test_a_moved_weight_is_the_ridge_regression(inputs: tuple[Tensor, Tensor]) -> None:
    """Of the float output on the quantized input, drawn towards the weight itself."""
    weight = torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(2))
    exact, quantized = (values.double() for values in inputs)
    hessian = quantized.T @ quantized
    ridge = DRIFT_DAMPING * hessian.diagonal().mean() * torch.eye(COLUMNS).double()
    targets = exact @ weight.double().T - quantized @ weight.double().T
    solved = torch.linalg.solve(hessian + ridge, quantized.T @ targets).T

    moved = of(inputs).moved(weight)
    torch.testing.assert_close(moved.double(), weight.double() + solved, rtol=1e-3, atol=1e-5)
