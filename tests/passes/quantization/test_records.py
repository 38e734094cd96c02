"""SQNR at its ends."""

from __future__ import annotations

import math

import torch

from qcompile.passes.quantization.records import sqnr_db


def test_sqnr_of_a_known_error() -> None:
    reference = torch.tensor([3.0, 4.0])
    found = sqnr_db([(reference, reference * 1.1)])
    assert found is not None
    assert math.isclose(found, 20.0, rel_tol=1e-5)


def test_ends() -> None:
    one = torch.ones(2)
    assert sqnr_db([(one, one)]) == math.inf
    assert sqnr_db([(one, torch.tensor([1.0, math.inf]))]) == -math.inf
    assert sqnr_db([(torch.zeros(2), one)]) is None
