"""Ops that the front end lacks, or would take for others, arrive with their own meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Emit = Callable[..., Any]
Function = Callable[[Tensor], Tensor]

CASES: dict[str, Function] = {
    "max_pool_by_its_size": lambda x: F.max_pool2d(x, 2),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, padding=1, ceil_mode=True),
    "argmax_of_all": lambda x: x.argmax(),
    "argmin_of_all_kept": lambda x: x.argmin(keepdim=True),
    "argmax_of_an_axis": lambda x: x.argmax(1),
    "std_of_all": lambda x: x.std(),
    "std_biased": lambda x: x.std(unbiased=False),
    "var_of_all": lambda x: x.var(),
    "var_correction": lambda x: x.var((1, 3), correction=2, keepdim=True),
    "where_scalar_other": lambda x: torch.where(x > 0, x, 0.5),
    "where_scalar_self": lambda x: torch.where(x > 0, 2, x),
    "where_scalars": lambda x: torch.where(x > 0, 1.5, -1.0),
    "where_promotes": lambda x: torch.where(x > 0, (x > 1).long(), 0.5),
    "and_of_booleans": lambda x: ((x > 0) & (x < 1)).float(),
    "or_of_booleans": lambda x: ((x < 0) | (x > 1)).float(),
    "xor_of_booleans": lambda x: ((x > 0) ^ (x > 1)).float(),
    "trunc": lambda x: (x * 3).trunc(),
    "fmod": lambda x: torch.fmod(x * 3, 0.75),
    "roll_of_all": lambda x: x.roll(3),
    "roll_of_an_axis": lambda x: x.roll(3, 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "nan_to_num": lambda x: torch.nan_to_num(x / (x - x[0, 0, 0, 0]), 0.25, 3.0, -3.0),
    "add_alpha": lambda x: torch.add(x, x * x, alpha=3),
    "sub_alpha": lambda x: torch.sub(x, x * x, alpha=0.5),
    "softplus_threshold": lambda x: F.softplus(x * 4, threshold=2),
    "baddbmm": lambda x: torch.baddbmm(x[0], x[0], x[0], beta=0.5, alpha=2),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(3)),
}


class Every(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: function(x) for name, function in CASES.items()}


@pytest.fixture(scope="module")
def results() -> list[Any]:
    """Hold what the first test of this file computes."""
    return []


@pytest.fixture
def found(emit: Emit, results: list[Any]) -> Any:
    """What the package, and what PyTorch makes of one input, all functions in one program."""
    if not results:
        x = torch.randn(1, 4, 8, 8).half().float()
        emission = emit(Every(), x, float_bits=32)
        assert emission.gate()["passed"], emission.gate()
        results.append((emission.run(), Every()(x)))
    return results[0]


@pytest.mark.parametrize("name", CASES)
def test_the_same_values(found: Any, name: str) -> None:
    outputs, expected = found
    value = torch.from_numpy(outputs[name])
    torch.testing.assert_close(value, expected[name], check_dtype=False, rtol=1e-4, atol=1e-5)
