"""Rows of error engine: how one value of an engine differs from the graph's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qcompile.targets.forced import float_row


def row(expected: list[float], found: list[float]) -> dict[str, Any]:
    return float_row("x", torch.tensor(expected), torch.tensor(found))


def test_what_is_not_finite_and_alike_does_not_count() -> None:
    values = [1.0, math.inf, -math.inf, math.nan]
    assert row(values, values)["differing"] == 0
    assert row(values, values)["sqnr_db"] is None
    near = row(values, [1.001, *values[1:]])
    assert near["sqnr_db"] == pytest.approx(60, abs=0.1)
    assert near["differing"] == 0.25


@pytest.mark.parametrize("found", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_in_one_of_both_fails(found: float) -> None:
    assert row([1.0, 2.0], [1.0, found])["sqnr_db"] == -1000
    assert row([1.0, found], [1.0, 2.0])["sqnr_db"] == -1000
    assert row([math.inf, 1.0], [-math.inf, 1.0])["sqnr_db"] == -1000


def test_what_is_found_where_zero_is_expected_fails() -> None:
    assert row([0.0, 0.0], [0.0, 1e-3])["sqnr_db"] == -1000


def test_another_shape_fails() -> None:
    assert row([1.0, 2.0], [1.0])["sqnr_db"] == -1000
    assert row([1.0, 2.0], [1.0])["differing"] == 1
