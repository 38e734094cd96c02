"""Random numbers through saved packages: the distribution, and the same values for the same seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import random

SHAPE = [40, 500]


def _drawn(run_mil: Any, dtype: Any, seed: int) -> list[Any]:
    def build(mb: Any, x: Any) -> Any:
        return [
            mb.random_uniform(shape=SHAPE, low=dtype(-1), high=dtype(3), seed=seed),
            mb.random_normal(shape=SHAPE, mean=dtype(2), stddev=dtype(0.5), seed=seed),
            mb.random_bernoulli(shape=SHAPE, prob=dtype(0.25), seed=seed),
            mb.random_categorical(x=x, mode="probs", size=20_000, seed=seed),
            mb.random_categorical(x=mb.log(x=x), size=20_000, seed=seed),
        ]

    found: list[Any] = run_mil(build, {"x": np.array([[0.5, 0, 0.5], [0.125, 0.75, 0.125]], dtype)})
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_distributions(run_mil: Any, dtype: Any) -> None:
    uniform, normal, bernoulli, *categorical = _drawn(run_mil, dtype, 3)
    assert all(v.dtype == dtype and list(v.shape) == SHAPE for v in (uniform, normal, bernoulli))
    assert uniform.min() >= -1
    assert uniform.max() <= 3
    wide = uniform.astype(np.float64)
    assert abs(wide.mean() - 1) < 0.05
    assert abs(wide.var() - 16 / 12) < 0.05
    wide = normal.astype(np.float64)
    assert abs(wide.mean() - 2) < 0.02
    assert abs(wide.std() - 0.5) < 0.02
    assert set(np.unique(bernoulli)) == {0, 1}
    assert abs(bernoulli.astype(np.float64).mean() - 0.25) < 0.02
    for drawn in categorical:
        shares = [[(row == c).mean() for c in range(3)] for row in drawn]
        np.testing.assert_allclose(shares, [[0.5, 0, 0.5], [0.125, 0.75, 0.125]], atol=0.02)


def test_a_seed_gives_the_same_values_and_another_others(run_mil: Any) -> None:
    first, again, other = (_drawn(run_mil, np.float32, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()


@pytest.mark.parametrize("seeds", [{}, {"seed": -1}])
def test_no_seed_is_refused(run_mil: Any, seeds: dict[str, int]) -> None:
    with pytest.raises(ExecutionError, match="cannot be reproduced"):
        run_mil(
            lambda mb, x: mb.add(x=x, y=mb.random_normal(shape=[3], **seeds)),
            {"x": np.ones(3, np.float32)},
        )


def test_values_that_make_no_sense_are_refused() -> None:
    seed = torch.tensor(1)
    with pytest.raises(ExecutionError, match="larger than"):
        random.random_uniform(torch.tensor([1 << 20, 1 << 20]), seed=seed)
    with pytest.raises(ExecutionError, match="no distribution"):
        random.random_categorical(torch.tensor([[0.5, -0.5]]), "probs", 1, seed)
    with pytest.raises(ExecutionError, match="no mode"):
        random.random_categorical(torch.ones(1, 2), "odds", 1, seed)
    with pytest.raises(ExecutionError, match="draws 0 of 2"):
        random.random_categorical(torch.ones(1, 2), "probs", 0, seed)
    with pytest.raises(ExecutionError, match="probability 2"):
        random.random_bernoulli(torch.tensor([2]), torch.tensor(2.0), seed)
