"""Float layers as ops of the IR: PyTorch's numbers, and shapes that are known before they run."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from qcompile.targets.tvm import float_ops as ops

X = torch.randn(2, 7, 6, 4, generator=torch.Generator().manual_seed(0))
CODES = torch.randint(-8, 8, (6, 4, 3, 2), generator=torch.Generator().manual_seed(1))
BIAS = torch.arange(6) / 4
FREE = -math.inf, math.inf


def check(op: torch._ops.OpOverload, expected: Tensor, *args: object) -> None:
    """Compare an op with what is expected, and its shape with the one that is known before."""
    torch.testing.assert_close(op(*args), expected)
    mode = FakeTensorMode()
    with mode:
        fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("groups", [0, 1, 2])
def test_a_convolution(groups: int) -> None:
    scale = {0: None, 1: torch.arange(1, 7) / 8, 2: torch.arange(1, 13).reshape(6, 2) / 8}[groups]
    stored = CODES.float() / 4 if scale is None else CODES.to(torch.int8)
    weight = stored
    if scale is not None:
        whole = scale.reshape(6, -1).repeat_interleave(4 // max(groups, 1), 1)
        weight = stored * whole[:, :, None, None]
    image = X.permute(0, 3, 1, 2)
    exact = functional.conv2d(image, weight, BIAS, (2, 1), (1, 0)).permute(0, 2, 3, 1)
    args = (X, stored, scale, BIAS, [2, 1], [1, 0], 1, 8)
    check(ops.CONV, exact, *args, *FREE)
    check(ops.CONV, exact.clamp(0, 2), *args, 0.0, 2.0)


def test_a_depthwise_convolution_without_bias() -> None:
    weight = CODES[:4, :1].float()
    exact = functional.conv2d(X.permute(0, 3, 1, 2), weight, None, 1, 1, 1, 4)
    args = (X, weight, None, None, [1, 1], [1, 1], 4, 32)
    check(ops.CONV, exact.permute(0, 2, 3, 1), *args, *FREE)


def test_a_linear_layer_of_any_rank() -> None:
    weight = CODES[:, :, 0, 0]
    scale = torch.tensor([[0.5, 0.25]]).expand(6, 2).contiguous()
    decoded = weight * torch.tensor([0.5, 0.5, 0.25, 0.25])
    for x in (X, X[0, 0]):
        exact = functional.linear(x, decoded, BIAS).clamp(min=0)
        check(ops.LINEAR, exact, x, weight.to(torch.int8), scale, BIAS, 4, 0.0, math.inf)


def test_a_sum() -> None:
    check(ops.ADD, (X + 2 * X).clamp(-1, 6), X, 2 * X, -1.0, 6.0)


def test_pools() -> None:
    check(ops.GLOBAL_AVERAGE, X.mean((1, 2), keepdim=True), X)
    greatest = functional.max_pool2d(X.permute(0, 3, 1, 2), (3, 2), (2, 1), (1, 1))
    check(ops.MAX_POOL, greatest.permute(0, 2, 3, 1), X, [3, 2], [2, 1], [1, 1])
