"""Pools through saved packages, against the definition window by window and against torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import pool as ops

properties = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def spans(size: int, k: int, s: int, pads: tuple[int, int], ceil_mode: bool) -> list[range]:
    """The windows of one dimension, in places of the data, by the documented sizes."""
    free = size + sum(pads) - k
    count = (math.ceil(free / s) if ceil_mode else math.floor(free / s)) + 1
    if ceil_mode and sum(pads) > 0 and (count - 1) * s >= size + pads[0]:
        count -= 1
    return [range(i * s - pads[0], i * s - pads[0] + k) for i in range(count)]


def pooled(x: Any, windows: list[list[range]], reduce: Callable[[Any, list[range]], Any]) -> Any:
    found = np.zeros((*x.shape[:2], *(len(w) for w in windows)))
    for place in np.ndindex(*found.shape[2:]):
        window = [w[p] for w, p in zip(windows, place, strict=True)]
        cells = [
            x[(slice(None), slice(None), *cell)]
            for cell in product(*window)
            if all(0 <= c < n for c, n in zip(cell, x.shape[2:], strict=True))
        ]
        data = np.array(cells, dtype=float).reshape(-1, *x.shape[:2])
        found[(slice(None), slice(None), *place)] = reduce(data, window)
    return found


def largest(data: Any, window: list[range]) -> Any:
    return data.max(0, initial=-np.inf)


def length(data: Any, window: list[range]) -> Any:
    return np.sqrt((data**2).sum(0))


def same(size: int, k: int, s: int) -> tuple[int, int]:
    total = max(0, (math.ceil(size / s) - 1) * s + k - size)
    return total // 2, total - total // 2


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rank", [1, 2, 3])
@properties
@given(
    seed=st.integers(0, 10_000),
    pad_type=st.sampled_from(["valid", "same", "same_lower", "custom"]),
    ceil_mode=st.booleans(),
)
def test_pools_are_reductions_of_windows(
    run_mil: Any, rank: int, dtype: Any, seed: int, pad_type: str, ceil_mode: bool
) -> None:
    rng = np.random.default_rng(seed)
    ceil_mode = ceil_mode and rank < 3 and pad_type in ("valid", "custom")
    kernel, strides = rng.integers(1, 4, rank).tolist(), rng.integers(1, 4, rank).tolist()
    spatial = rng.integers(4, 8 if rank < 3 else 6, rank).tolist()
    custom = [tuple(rng.integers(0, 3, 2).tolist()) for _ in range(rank)]
    if ceil_mode:
        custom = [(a, a) for a, _ in custom]
    pads = {
        "valid": [(0, 0)] * rank,
        "custom": custom,
        "same": [same(*row) for row in zip(spatial, kernel, strides, strict=True)],
        "same_lower": [same(*row)[::-1] for row in zip(spatial, kernel, strides, strict=True)],
    }[pad_type]
    windows = [spans(*row, ceil_mode) for row in zip(spatial, kernel, strides, pads, strict=True)]
    # A window without any data or padding is a size on which torch and coremltools disagree.
    ends = [n + b for n, (_, b) in zip(spatial, pads, strict=True)]
    assume(all(w[-1].start < end for w, end in zip(windows, ends, strict=True)))
    x = rng.standard_normal((2, 2, *spatial)).astype(dtype)

    def mean(data: Any, window: list[range]) -> Any:
        inside = [
            len([c for c in w if -b <= c < n + a])
            for w, n, (b, a) in zip(window, spatial, pads, strict=True)
        ]
        return data.sum(0) / math.prod(inside)

    def mean_of_data(data: Any, window: list[range]) -> Any:
        return data.sum(0) / len(data) if len(data) else np.full(x.shape[:2], np.nan)

    def build(mb: Any, x: Any) -> Any:
        given: dict[str, Any] = {
            "x": x, "kernel_sizes": kernel, "strides": strides, "pad_type": pad_type,
            "ceil_mode": ceil_mode,
        }  # fmt: skip
        if pad_type == "custom":
            given["pad"] = [side for pair in custom for side in pair]
        found = [
            mb.max_pool(**given),
            mb.avg_pool(**given),
            mb.avg_pool(**given, exclude_padding_from_average=True),
        ]
        return [*found, mb.l2_pool(**given)] if rank < 3 else found

    found = run_mil(build, {"x": x})
    tolerance = 1e-5 if dtype == np.float32 else 2e-3
    reductions = [largest, mean, mean_of_data, length][: len(found)]
    for result, reduce in zip(found, reductions, strict=True):
        assert result.dtype == dtype
        expected = pooled(x, windows, reduce)
        np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", range(4, 10))
def test_ceil_mode_is_torchs(size: int) -> None:
    x = torch.randn(1, 2, size, size + 1)
    kernel, strides, pad = torch.tensor([3, 2]), torch.tensor([2, 2]), torch.tensor([1, 1, 1, 1])
    args = (x, kernel, strides, "custom", pad)
    torch.testing.assert_close(
        ops.max_pool(*args, ceil_mode=True), F.max_pool2d(x, (3, 2), 2, 1, ceil_mode=True)
    )
    for excludes in (False, True):
        expected = F.avg_pool2d(x, (3, 2), 2, 1, True, count_include_pad=not excludes)
        found = ops.avg_pool(*args, exclude_padding_from_average=excludes, ceil_mode=True)
        torch.testing.assert_close(found, expected)


def test_a_window_of_padding_alone() -> None:
    x, kernel, pad = torch.ones(1, 1, 2), torch.tensor([2]), torch.tensor([2, 0])
    assert ops.max_pool(x, kernel, None, "custom", pad).tolist() == [[[-math.inf, 1.0, 1.0]]]
    assert ops.avg_pool(x, kernel, None, "custom", pad).tolist() == [[[0.0, 0.5, 1.0]]]
    found = ops.avg_pool(x, kernel, None, "custom", pad, exclude_padding_from_average=True)
    assert found[0, 0, 0].isnan()
    assert found[0, 0, 1:].tolist() == [1.0, 1.0]


def test_attributes_that_cannot_be_are_refused() -> None:
    x, kernel = torch.ones(1, 1, 5, 5), torch.tensor([2, 2])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"pad_type": "same", "ceil_mode": True}, "does not go with"),
        ({"pad_type": "custom", "pad": torch.tensor([0, 1, 0, 0]), "ceil_mode": True}, "symmetric"),
        ({"kernel_sizes": torch.tensor([6, 2])}, "no window"),
        ({"kernel_sizes": torch.tensor([0, 2])}, "above zero"),
        ({"pad_type": "custom", "pad": torch.tensor([0, 1 << 31, 0, 0])}, "GiB"),
    ]
    for attributes, message in refused:
        with pytest.raises(ExecutionError, match=message):
            ops.max_pool(x, **{"kernel_sizes": kernel, **attributes})
    with pytest.raises(ExecutionError, match="not three"):
        ops.l2_pool(x[None], torch.tensor([1, 1, 1]))
    with pytest.raises(ExecutionError, match="not for three"):
        ops.max_pool(x[None], torch.tensor([1, 1, 1]), ceil_mode=True)
