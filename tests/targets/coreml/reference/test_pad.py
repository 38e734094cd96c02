"""The op ``pad`` through saved packages, against numpy and against coremltools' folding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import pad as ops

NUMPY: dict[str, Any] = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mode", list(NUMPY))
@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
def test_pad(run_mil: Any, fold_mil: Any, mode: str, dtype: Any, seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    shape, count = rng.integers(1, 5, rank).tolist(), int(rng.integers(1, rank + 1))
    limit = {"constant": 4, "reflect": 0, "replicate": 1}[mode]
    limits = [limit if mode == "constant" else n - 1 + limit for n in shape[rank - count :]]
    pads = [int(rng.integers(0, n + 1)) for n in np.repeat(limits, 2)]
    x, value = rng.standard_normal(shape).astype(dtype), dtype(rng.standard_normal())

    def build(mb: Any, x: Any) -> Any:
        return mb.pad(x=x, pad=pads, mode=mode, constant_val=value)

    pairs = [(0, 0)] * (rank - count) + list(zip(pads[::2], pads[1::2], strict=True))
    more: Any = {"constant_values": value} if mode == "constant" else {}
    expected = np.pad(x, pairs, NUMPY[mode], **more)
    (found,), (folded,) = run_mil(build, {"x": x}), fold_mil(build, {"x": x})
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, folded)
    assert found.dtype == dtype


def test_a_padding_that_the_program_computes(run_mil: Any) -> None:
    x, pads = np.ones((2, 3), np.float32), np.array([0, 1, 2, 0], np.int32)
    (found,) = run_mil(lambda mb, x, p: mb.pad(x=x, pad=p), {"x": x, "p": pads})
    np.testing.assert_array_equal(found, np.pad(x, [(0, 1), (2, 0)]))


def test_integers_keep_their_dtype() -> None:
    x = torch.arange(3, dtype=torch.int32)
    assert ops.pad(x, torch.tensor([1, 2]), constant_val=7).tolist() == [7, 0, 1, 2, 7, 7]
    found = ops.pad(x, torch.tensor([2, 1]), "reflect")
    assert found.tolist() == [2, 1, 0, 1, 2, 1]
    assert found.dtype == torch.int32


@pytest.mark.parametrize(
    ("pads", "mode", "message"),
    [
        ([1], "constant", "does not fit"),
        ([0, 0, 0, 0], "constant", "does not fit"),
        ([-1, 0], "constant", "does not fit"),
        ([3, 0], "reflect", "at most 2"),
        ([0, 4], "replicate", "at most 3"),
        ([0, 1], "circular", "no padding mode"),
        ([0, (1 << 31) - 1], "constant", "GiB"),
    ],
)
def test_paddings_that_cannot_be_are_refused(pads: list[int], mode: str, message: str) -> None:
    with pytest.raises(ExecutionError, match=message):
        ops.pad(torch.ones(3), torch.tensor(pads), mode)
