"""Attention through saved packages, against torch's and coremltools' folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import attention as ops


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mask", ["none", "bool", "float"])
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10_000), batch=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_attention(
    run_mil: Any, fold_mil: Any, mask: str, dtype: Any, seed: int, batch: list[int]
) -> None:
    rng = np.random.default_rng(seed)
    queries, keys, width, values = rng.integers(1, 6, 4).tolist()
    sizes = {"q": (queries, width), "k": (keys, width), "v": (keys, values)}
    inputs = {n: rng.standard_normal((*batch, *s)).astype(dtype) for n, s in sizes.items()}
    if mask != "none":
        shape = (*(n if rng.random() < 0.5 else 1 for n in batch), queries, keys)
        lifted = rng.standard_normal(shape).astype(dtype)
        inputs["m"] = lifted if mask == "float" else lifted > 0
        if mask == "bool":
            inputs["m"][..., 0] = True

    def build(mb: Any, q: Any, k: Any, v: Any, m: Any = None) -> Any:
        more = {} if m is None else {"attn_mask": m}
        return mb.scaled_dot_product_attention(query=q, key=k, value=v, **more)

    (found,), (folded,) = run_mil(build, inputs), fold_mil(build, inputs)
    q, k, v = (torch.from_numpy(inputs[n]).float() for n in "qkv")
    chosen = None if mask == "none" else torch.from_numpy(inputs["m"])
    chosen = chosen.float() if mask == "float" and chosen is not None else chosen
    expected = F.scaled_dot_product_attention(q, k, v, chosen).numpy()
    tolerance = 1e-5 if dtype == np.float32 else 2e-3
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    # numpy folds in float16, where sums of a few products are off by more.
    coarse = 1e-5 if dtype == np.float32 else 1e-2
    np.testing.assert_allclose(found, folded, rtol=coarse, atol=coarse)


def test_a_query_without_keys_has_no_value() -> None:
    q = torch.ones(1, 2, 3)
    mask = torch.tensor([[True, False], [False, False]])
    found = ops.scaled_dot_product_attention(q, q, q, mask)
    assert found[0, 0].tolist() == [1.0] * 3
    assert found[0, 1].isnan().all()


def test_a_mask_of_numbers_is_refused() -> None:
    q = torch.ones(1, 2, 3)
    with pytest.raises(ExecutionError, match="neither bool nor float"):
        ops.scaled_dot_product_attention(q, q, q, torch.ones(2, 2, dtype=torch.int32))
