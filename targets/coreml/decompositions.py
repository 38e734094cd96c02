"""Ops that coremltools' PyTorch front end lacks or takes for simpler ones, in terms of those that it knows.

The front end reads an exported program's positional arguments and some keywords. What it does not read it
takes for the default: ``alpha`` of an addition, ``threshold`` of softplus. Such calls are taken apart
here; the usual ones, for which a function below returns ``NotImplemented``, go to the front end whole.
"""

from __future__ import annotations

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
    aten.rsub,
)
"""Taken apart as PyTorch itself does it."""
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
    }
    return {**get_decompositions(_FROM_TORCH), **own}


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
