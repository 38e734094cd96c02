"""Matrix products. Source: coremltools' op definitions, linear.py.

From iOS 17 on the operands may differ in type; the result has the type that the program declares.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded, broadcast
from qcompile.targets.coreml.reference.ops.elementwise import saturating
from qcompile.targets.coreml.reference.registry import op
from qcompile.targets.coreml.reference.types import TensorType


@op("linear")
def linear(x: Tensor, weight: Tensor, result: TensorType, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: ``[..., in]``, ``[out, in]`` and ``[out]`` to ``[..., out]``."""
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise ExecutionError(f"linear has {list(x.shape)} and a weight of {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ExecutionError(f"linear has {len(weight)} outputs and a bias of {list(bias.shape)}")
    bounded((*x.shape[:-1], len(weight)), torch.float64)
    if x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype):
        return F.linear(x, weight, bias)
    product = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    return _declared(product, result)


@op("matmul")
def matmul(
    x: Tensor,
    y: Tensor,
    result: TensorType,
    transpose_x: Tensor | bool = False,
    transpose_y: Tensor | bool = False,
) -> Tensor:
    """``x @ y`` with numpy's broadcasting; the last two dimensions of either may change places."""
    left = x.mT if bool(transpose_x) and x.ndim > 1 else x
    right = y.mT if bool(transpose_y) and y.ndim > 1 else y
    _check_product(left, right)
    if x.dtype == y.dtype:
        return torch.matmul(left, right)
    return _declared(torch.matmul(left.double(), right.double()), result)


def _check_product(x: Tensor, y: Tensor) -> None:
    inner = y.shape[-2] if y.ndim > 1 else y.shape[-1]
    if min(x.ndim, y.ndim) < 1 or x.shape[-1] != inner:
        raise ExecutionError(f"matmul has factors of {list(x.shape)} and {list(y.shape)}")
    if min(x.ndim, y.ndim) > 1:
        broadcast(x[..., :1], y[..., :1, :])


def _declared(product: Tensor, result: TensorType) -> Tensor:
    return product.float() if result.dtype.is_floating_point else saturating(product, result.dtype)


@op("einsum")
def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """The sum of products that ``equation`` says; a dimension of 1 is repeated."""
    terms, _, kept = equation.replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, value in zip(terms.split(","), values, strict=True):
        for label, size in zip(term, value.shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 0))
    bounded([sizes[label] for label in kept], torch.float32)
    return torch.einsum(equation, *values)
