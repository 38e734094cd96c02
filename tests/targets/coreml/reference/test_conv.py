"""Convolutions through saved packages, against the documented sums and against torch."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import conv as ops

properties = settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TOLERANCE = {np.float32: 1e-5, np.float16: 4e-3}


def summed(
    x: Any, w: Any, strides: Any, dilations: Any, before: Any, sizes: Any, groups: int
) -> Any:
    """The sum that defines a convolution, one product after the other, in float64."""
    rank, per = x.ndim - 2, w.shape[0] // groups
    found = np.zeros((x.shape[0], w.shape[0], *sizes))
    for place, tap in product(np.ndindex(*sizes), np.ndindex(*w.shape[2:])):
        source = [place[a] * strides[a] + tap[a] * dilations[a] - before[a] for a in range(rank)]
        if any(not 0 <= s < n for s, n in zip(source, x.shape[2:], strict=True)):
            continue
        pixel = x[(slice(None), slice(None), *source)].astype(float)
        for c in range(w.shape[0]):
            group = pixel[:, c // per * w.shape[1] :][:, : w.shape[1]]
            found[(slice(None), c, *place)] += group @ w[(c, slice(None), *tap)].astype(float)
    return found


def padding(pad_type: str, size: int, k: int, s: int, custom: tuple[int, int]) -> tuple[int, int]:
    """Padding of one dimension, from the definition: ``same`` gives ceil(size / stride) windows."""
    if pad_type == "valid":
        return 0, 0
    if pad_type == "custom":
        return custom
    total = max(0, (math.ceil(size / s) - 1) * s + k - size)
    small, large = total // 2, math.ceil(total / 2)
    return (small, large) if pad_type == "same" else (large, small)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rank", [1, 2, 3])
@properties
@given(
    seed=st.integers(0, 10_000),
    pad_type=st.sampled_from(["valid", "same", "same_lower", "custom"]),
    groups=st.sampled_from([1, 2]),
    has_bias=st.booleans(),
)
def test_conv_is_the_documented_sum(
    run_mil: Any, rank: int, dtype: Any, seed: int, pad_type: str, groups: int, has_bias: bool
) -> None:
    rng = np.random.default_rng(seed)
    kernel, strides = rng.integers(1, 4, rank).tolist(), rng.integers(1, 4, rank).tolist()
    dilations = rng.integers(1, 3, rank).tolist()
    spatial = rng.integers(5, 8 if rank < 3 else 6, rank).tolist()
    custom = rng.integers(0, 3, 2 * rank).tolist()
    x = rng.standard_normal((2, 2 * groups, *spatial)).astype(dtype)
    w = rng.standard_normal((3 * groups, 2, *kernel)).astype(dtype)
    b = rng.standard_normal(3 * groups).astype(dtype)
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pairs = [
        padding(pad_type, *row)
        for row in zip(
            spatial, windows, strides, zip(custom[::2], custom[1::2], strict=True), strict=True
        )
    ]
    sizes = [
        (n + sum(p) - k) // s + 1
        for n, p, k, s in zip(spatial, pairs, windows, strides, strict=True)
    ]

    def build(mb: Any, x: Any) -> Any:
        more = {"bias": b} if has_bias else {}
        if pad_type == "custom":
            more["pad"] = custom
        return mb.conv(
            x=x, weight=w, strides=strides, dilations=dilations, pad_type=pad_type, groups=groups,
            **more,
        )  # fmt: skip

    (found,) = run_mil(build, {"x": x})
    expected = summed(x, w, strides, dilations, [p[0] for p in pairs], sizes, groups)
    if has_bias:
        expected += b.astype(float).reshape(-1, *[1] * rank)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_conv_without_attributes_is_torchs(run_mil: Any) -> None:
    x, w = torch.randn(1, 3, 7, 6), torch.randn(4, 3, 3, 3)
    (found,) = run_mil(lambda mb, x: mb.conv(x=x, weight=w.numpy()), {"x": x.numpy()}, "iOS15")
    torch.testing.assert_close(torch.from_numpy(found), F.conv2d(x, w))


def test_weights_of_another_dtype_that_the_program_computes(run_mil: Any) -> None:
    x, w, b = torch.randn(1, 3, 5), torch.randn(4, 3, 2).half(), torch.randn(4).half()

    def build(mb: Any, x: Any, w: Any, b: Any) -> Any:
        more = {"weight": w, "pad": [1, 1], "pad_type": "custom"}
        back = mb.transpose(x=w, perm=[1, 0, 2])
        return mb.conv(x=x, bias=b, **more), mb.conv_transpose(x=x, **{**more, "weight": back})

    given = {"x": x.numpy(), "w": w.numpy(), "b": b.numpy()}
    found = [torch.from_numpy(v) for v in run_mil(build, given, "iOS17")]
    torch.testing.assert_close(found[0], F.conv1d(x, w.float(), b.float(), padding=1))
    flipped = F.conv_transpose1d(x, w.float().transpose(0, 1), padding=1)
    torch.testing.assert_close(found[1], flipped)


@pytest.mark.parametrize(("nbits", "channels"), [(8, 1), (8, 4), (3, 4)])
def test_conv_quantized_widens_its_weight(run_mil: Any, nbits: int, channels: int) -> None:
    rng = np.random.default_rng(nbits)
    x = rng.standard_normal((1, 3, 6, 6)).astype(np.float32)
    codes = rng.integers(0, 1 << nbits, (4, 3, 2, 2)).astype(np.uint8)
    scale, offset = (rng.random(channels).astype(np.float32) for _ in range(2))

    def build(mb: Any, x: Any) -> Any:
        return mb.conv_quantized(
            x=x, weight=codes, quantization_type="linear", nbits=nbits, quant_scale=scale,
            quant_bias=offset, strides=[2, 1], pad_type="same",
        )  # fmt: skip

    (found,) = run_mil(build, {"x": x}, "iOS15")
    wide = codes * scale.reshape(-1, 1, 1, 1) + offset.reshape(-1, 1, 1, 1)
    expected = summed(x, wide, [2, 1], [1, 1], [0, 0], [3, 6], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_conv_quantized_refuses_what_it_cannot_know() -> None:
    x, codes, one = torch.ones(1, 1, 2), torch.full((1, 1, 1), 8).byte(), torch.ones(1)
    with pytest.raises(ExecutionError, match="table"):
        ops.conv_quantized(x, codes, "lut", one, one)
    with pytest.raises(ExecutionError, match="codes up to 8 in 3 bits"):
        ops.conv_quantized(x, codes, "linear", one, one, nbits=3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("rank", [1, 2, 3])
@properties
@given(seed=st.integers(0, 10_000), pad_type=st.sampled_from(["valid", "same", "custom"]))
def test_conv_transpose_is_the_gradient_of_conv(
    run_mil: Any, rank: int, dtype: Any, seed: int, pad_type: str
) -> None:
    rng = np.random.default_rng(seed)
    kernel, strides = rng.integers(1, 4, rank).tolist(), rng.integers(1, 4, rank).tolist()
    dilations, groups = rng.integers(1, 3, rank).tolist(), int(rng.integers(1, 3))
    spatial = rng.integers(3, 5, rank).tolist()
    windows = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    custom = [int(rng.integers(0, min(3, n))) for n in np.repeat(windows, 2)]
    full = [(n - 1) * s + k for n, s, k in zip(spatial, strides, windows, strict=True)]
    pairs = list(zip(custom[::2], custom[1::2], strict=True))
    sizes = {
        "valid": full,
        "same": [n * s for n, s in zip(spatial, strides, strict=True)],
        "custom": [n - sum(p) for n, p in zip(full, pairs, strict=True)],
    }[pad_type]
    if min(sizes) < 1:
        return
    x = rng.standard_normal((1, 2 * groups, *spatial)).astype(dtype)
    w = rng.standard_normal((2 * groups, 3, *kernel)).astype(dtype)

    def build(mb: Any, x: Any) -> Any:
        more = {"pad": custom} if pad_type == "custom" else {}
        return mb.conv_transpose(
            x=x, weight=w, strides=strides, dilations=dilations, groups=groups, pad_type=pad_type,
            **more,
        )  # fmt: skip

    (found,) = run_mil(build, {"x": x})
    before = [padding(pad_type, *row) for row in zip(sizes, windows, strides, pairs, strict=True)]
    expected = gradient(x, w, sizes, before, strides, dilations, groups)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def gradient(
    x: Any, w: Any, sizes: Any, pads: Any, strides: Any, dilations: Any, groups: int
) -> Any:
    """What autograd says of the convolution of an input of ``sizes`` that gives the shape of ``x``."""
    image = torch.zeros(1, w.shape[1] * groups, *sizes, dtype=torch.float64, requires_grad=True)
    wide = F.pad(image, [side for pair in reversed(pads) for side in pair])
    result = CONV[len(sizes)](
        wide, torch.from_numpy(w).double(), stride=strides, dilation=dilations, groups=groups
    )
    result.backward(torch.from_numpy(x).double())
    assert image.grad is not None
    return image.grad.numpy()


@pytest.mark.parametrize("size", [7, 8])
def test_output_shape_chooses_among_the_sizes(run_mil: Any, size: int) -> None:
    x, w, b = torch.randn(1, 2, 4, 4), torch.randn(2, 3, 3, 3), torch.randn(3)

    def build(mb: Any, x: Any) -> Any:
        return mb.conv_transpose(
            x=x, weight=w.numpy(), bias=b.numpy(), strides=[2, 2], pad=[1, 1, 1, 1],
            pad_type="custom", output_shape=[1, 3, size, size],
        ), mb.conv_transpose(
            x=x, weight=w.numpy(), strides=[2, 2], pad_type="same", output_shape=[1, 3, size, size],
        )  # fmt: skip

    custom, same = run_mil(build, {"x": x.numpy()})
    expected = F.conv_transpose2d(x, w, b, 2, 1, output_padding=size - 7)
    torch.testing.assert_close(torch.from_numpy(custom), expected)
    pads = [padding("same", size, 3, 2, (0, 0))] * 2
    wanted = gradient(x.numpy(), w.numpy(), [size, size], pads, [2, 2], [1, 1], 1)
    np.testing.assert_allclose(same, wanted, rtol=1e-5, atol=1e-5)


def test_a_size_that_no_conv_maps_is_refused() -> None:
    x, w = torch.ones(1, 1, 4), torch.ones(1, 1, 3)
    for wanted in ([1, 1, 40], [1, 2, 6], [1, 1, 0]):
        with pytest.raises(ExecutionError, match=r"output_shape|no conv maps"):
            ops.conv_transpose(x, w, output_shape=torch.tensor(wanted))
    with pytest.raises(ExecutionError, match="same_lower"):
        ops.conv_transpose(x, w, pad_type="same_lower")


def test_attributes_that_cannot_be_are_refused() -> None:
    x, w = torch.ones(1, 1, 4), torch.ones(1, 1, 3)
    for attributes, message in (
        ({"pad_type": "full"}, "pad_type 'full'"),
        ({"pad_type": "custom", "pad": torch.tensor([-1, 0])}, "negative"),
        ({"strides": torch.tensor([0])}, "above zero"),
        ({"dilations": torch.tensor([1, 1])}, "needs 1 numbers"),
        ({"pad_type": "custom", "pad": torch.tensor([1 << 30, 1 << 30])}, "GiB"),
        ({"pad_type": "custom", "pad": torch.tensor([0, (1 << 31) - 1])}, "GiB"),
    ):
        with pytest.raises(ExecutionError, match=message):
            ops.conv(x, w, **attributes)
