"""Ops that coremltools' PyTorch front end lacks or takes for simpler ones, in terms of those that it knows.

The front end reads an exported program's positional arguments and some keywords. What it does not read it
takes for the default: ``alpha`` of an addition, ``threshold`` of softplus. Such calls are taken apart
here; the usual ones, for which a function below returns ``NotImplemented``, go to the front end whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions

from qcompile.compiler.ir.ops import aten

_FROM_TORCH = (
    aten.addcdiv,
    aten.addcmul,
    aten.celu,
    aten.channel_shuffle,
    aten.rot90,
    aten.rsub,
)
"""Taken apart as PyTorch itself does it."""
_STEP_BY_STEP = (aten.gru.input, aten.rnn_relu.input, aten.rnn_tanh.input)
"""Taken apart as PyTorch does it, each step of the sequence by itself, so that weights in codes are those
of linear layers, as they are. MIL's ``gru`` computes PyTorch's only from iOS 18 on, and in one direction.
The length of the sequence is fixed: ``torch.export`` itself keeps none of these layers at a free one."""
_STEEP = 20.0
"""PyTorch's threshold of softplus, above which it returns its input: they differ by 2e-9."""


@cache
def decompositions() -> Mapping[Any, Callable[..., Any]]:
    """Return what ``ExportedProgram.run_decompositions`` takes."""
    own: dict[Any, Callable[..., Any]] = {
        aten.add.Tensor: _add,
        aten.sub.Tensor: _sub,
        aten.addmm.default: _addmm,
        aten.baddbmm.default: _baddbmm,
        aten.softplus.default: _softplus,
        aten.lerp.Scalar: _lerp,
        aten.lerp.Tensor: _lerp,
        aten.log_sigmoid.default: _log_sigmoid,
        aten.cosine_similarity.default: _cosine_similarity,
        aten.__and__.Tensor: _of_booleans(torch.logical_and),
        aten.__or__.Tensor: _of_booleans(torch.logical_or),
        aten.__xor__.Tensor: _of_booleans(torch.logical_xor),
        aten.bitwise_or.Tensor: _of_booleans(torch.logical_or),
        aten.bitwise_xor.Tensor: _of_booleans(torch.logical_xor),
        aten.nan_to_num.default: _nan_to_num,
        aten.trunc.default: _trunc,
        aten.fmod.Tensor: _fmod,
        aten.fmod.Scalar: _fmod,
        aten.roll.default: _roll,
        aten.std.default: _std_of_all,
        aten.std.correction: _std,
        aten.var.default: _var_of_all,
        aten.var.correction: _var,
        aten.argmax.default: _of_all(torch.argmax),
        aten.argmin.default: _of_all(torch.argmin),
        aten.max_pool1d.default: _with_stride(torch.max_pool1d),
        aten.max_pool2d.default: _with_stride(torch.max_pool2d),
        aten.max_pool3d.default: _with_stride(torch.max_pool3d),
        aten.where.ScalarSelf: _where,
        aten.where.ScalarOther: _where,
        aten.where.Scalar: _where,
    }
    return {**get_decompositions((*_FROM_TORCH, *_STEP_BY_STEP)), **own}


def _add(x: Tensor, y: Any, *, alpha: Any = 1) -> Any:
    return NotImplemented if alpha == 1 else torch.add(x, y * alpha)


def _sub(x: Tensor, y: Any, *, alpha: Any = 1) -> Any:
    return NotImplemented if alpha == 1 else torch.sub(x, y * alpha)


def _addmm(added: Tensor, x: Tensor, y: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta == alpha == 1:
        return NotImplemented
    return added * beta + torch.mm(x, y) * alpha


def _baddbmm(added: Tensor, x: Tensor, y: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return added * beta + torch.bmm(x, y) * alpha


def _softplus(x: Tensor, beta: Any = 1, threshold: Any = _STEEP) -> Any:
    if threshold >= _STEEP:
        return NotImplemented
    steep = x * beta
    return torch.where(steep > threshold, x, torch.log1p(steep.clamp(max=threshold).exp()) / beta)


def _lerp(start: Tensor, end: Tensor, weight: Any) -> Any:
    return start + (end - start) * weight


def _log_sigmoid(x: Tensor) -> Any:
    return -torch.nn.functional.softplus(-x)


def _cosine_similarity(x: Tensor, y: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    lengths = [v.square().sum(dim, keepdim=True).sqrt().clamp(min=eps) for v in (x, y)]
    return ((x / lengths[0]) * (y / lengths[1])).sum(dim)


def _with_stride(pool: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return a pooling that spells out its stride, which the front end does not take for the size."""

    def spelled(x: Tensor, size: Any, stride: Any = (), *rest: Any) -> Any:
        return NotImplemented if stride else pool(x, size, size, *rest)

    return spelled


def _where(condition: Tensor, x: Any, y: Any) -> Any:
    """Write numbers as tensors: the front end has the form of ``where`` for two tensors alone."""
    dtype = torch.result_type(x, y)
    given = [
        v.to(dtype) if isinstance(v, Tensor) else torch.scalar_tensor(v, dtype=dtype)
        for v in (x, y)
    ]
    return torch.where(condition, *given)


def _of_all(find: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return argmax or argmin that, for all elements, flattens: the front end takes the last axis."""

    def spelled(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is not None:
            return NotImplemented
        index = find(x.reshape(-1), 0)
        return index.reshape([1] * x.dim()) if keepdim else index

    return spelled


def _of_booleans(logical: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return ``&``, ``|`` or ``^`` of truth values; the front end has none of whole numbers."""

    def spelled(x: Tensor, y: Tensor) -> Any:
        return logical(x, y) if x.dtype == y.dtype == torch.bool else NotImplemented

    return spelled


def _nan_to_num(x: Tensor, nan: Any = None, posinf: Any = None, neginf: Any = None) -> Any:
    largest = torch.finfo(x.dtype).max
    x = torch.where(x != x, 0.0 if nan is None else nan, x)
    x = torch.where(x == math.inf, largest if posinf is None else posinf, x)
    return torch.where(x == -math.inf, -largest if neginf is None else neginf, x)


def _var(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    """Divide by the number of elements less ``correction``, which the front end overlooks."""
    axes = list(range(x.dim())) if not dim else list(dim)
    count = math.prod(x.shape[axis] for axis in axes)
    mean = (x - x.mean(axes, keepdim=True)).square().mean(axes, keepdim=keepdim)
    return mean * (count / (count - (1 if correction is None else correction)))


def _std(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    return _var(x, dim, correction=correction, keepdim=keepdim).sqrt()


def _var_of_all(x: Tensor, unbiased: bool = True) -> Any:
    return _var(x, correction=int(unbiased))


def _std_of_all(x: Tensor, unbiased: bool = True) -> Any:
    return _std(x, correction=int(unbiased))


def _roll(x: Tensor, shifts: Any, dims: Any = ()) -> Any:
    return NotImplemented if dims else torch.roll(x.reshape(-1), shifts, [0]).reshape(x.shape)


def _trunc(x: Tensor) -> Any:
    return x.sign() * x.abs().floor()


def _fmod(x: Tensor, y: Any) -> Any:
    return x - _trunc(x / y) * y
