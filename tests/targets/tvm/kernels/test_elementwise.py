"""Sums, tables and conversions of codes against the ops in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.compiler.ir.ops import QUANTIZE
from qcompile.targets.tvm import code_ops
from qcompile.targets.tvm.kernels.parts import Codes

SHAPES = st.lists(st.sampled_from([1, 2, 3, 7, 16, 37, 48]), min_size=1, max_size=3)
TYPES = st.sampled_from(["uint8", "int8"])
BATCHES = st.sampled_from([1, 3])
LIMITS = {"uint8": (0, 255), "int8": (-128, 127)}


def any_codes(shape: tuple[int, ...], dtype: str, seed: int = 0) -> NDArray[Any]:
    """Return random codes with both ends among them."""
    low, high = LIMITS[dtype]
    found = np.random.default_rng(seed).integers(low, high + 1, shape)
    found.flat[0], found.flat[-1] = low, high
    return found.astype(dtype)


@settings(max_examples=3)
@given(
    shape=SHAPES, batch=BATCHES, a=TYPES, b=TYPES, to=TYPES,
    scales=st.tuples(st.floats(0.01, 3), st.floats(0.01, 3)), offset=st.floats(-200, 200),
)  # fmt: skip
def test_add(
    cpu: Any, equal_codes: Any, shape: list[int], batch: int, a: str, b: str, to: str,
    scales: tuple[float, float], offset: float,
) -> None:  # fmt: skip
    left, right = any_codes((batch, *shape), a, 1), any_codes((batch, *shape), b, 2)
    codes = Codes(to, *LIMITS[to])
    kernel = cpu.kernels.add(shape, (a, b), scales, offset, codes)
    found = cpu.call(kernel, left, right, np.zeros_like(left, to))
    values = map(torch.from_numpy, (left, right))
    expected = code_ops.integer_add(*values, *scales, offset, codes.low, codes.high, to)
    equal_codes(found, expected.numpy())


def test_add_ends_at_the_limits(cpu: Any) -> None:
    left = any_codes((1, 5, 16), "uint8")
    codes = Codes("uint8", 20, 200)
    kernel = cpu.kernels.add((5, 16), ("uint8", "uint8"), (2.0, 1.0), -30.0, codes)
    found = cpu.call(kernel, left, left, np.zeros_like(left))
    expected = np.clip(3 * left.astype(int) - 30, 20, 200)
    np.testing.assert_array_equal(found, expected)
    assert {20, 200} < set(found.flat)


@settings(max_examples=3)
@given(shape=SHAPES, batch=BATCHES, dtype=TYPES, to=TYPES)
def test_table(cpu: Any, shape: list[int], batch: int, dtype: str, to: str) -> None:
    x = any_codes((batch, *shape), dtype)
    entries = np.random.default_rng(3).permutation(np.arange(256) + LIMITS[to][0]).astype(to)
    found = cpu.call(cpu.kernels.table(shape, dtype, to), x, entries, np.zeros((batch, *shape), to))
    expected = code_ops.integer_table(torch.from_numpy(x), torch.from_numpy(entries))
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("dtype", LIMITS)
def test_table_has_an_entry_for_every_code(cpu: Any, dtype: str) -> None:
    low, high = LIMITS[dtype]
    x = np.arange(low, high + 1).astype(dtype).reshape(1, 256)
    entries = np.arange(256, dtype=np.uint8)[::-1].copy()
    found = cpu.call(cpu.kernels.table((256,), dtype, "uint8"), x, entries, entries[None].copy())
    np.testing.assert_array_equal(found[0], entries)


@settings(max_examples=3)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 12]), st.integers(1, 9), st.integers(1, 9)),
    batch=BATCHES, scale=st.floats(1e-3, 1), zero=st.integers(0, 255), to=TYPES,
)  # fmt: skip
def test_quantize_channels_last(
    cpu: Any, shape: tuple[int, int, int], batch: int, scale: float, zero: int, to: str
) -> None:
    low, high = LIMITS[to]
    zero += low
    x = np.random.default_rng(4).normal(0, 100 * scale, (batch, *shape)).astype(np.float32)
    x.flat[0], x.flat[-1] = -1e9, 1e9
    kernel = cpu.kernels.quantize_channels_last(shape, scale, zero, Codes(to, low, high))
    found = cpu.call(kernel, x, np.zeros((batch, *shape[1:], shape[0]), to))
    expected = QUANTIZE(torch.from_numpy(x), scale, zero, low, high, getattr(torch, to))
    np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1).numpy())


def test_halves_are_rounded_to_even(cpu: Any) -> None:
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32).reshape(1, 1, 1, 6)
    kernel = cpu.kernels.quantize_channels_last((1, 1, 6), 1.0, 10, Codes("uint8", 0, 255))
    found = cpu.call(kernel, x, np.zeros((1, 1, 6, 1), np.uint8))
    assert found.flatten().tolist() == [8, 10, 10, 12, 12, 14]
