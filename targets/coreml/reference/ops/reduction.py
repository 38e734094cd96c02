"""Reductions, and ``classify``. Source: coremltools' op definitions, reduction.py and classify.py.

Floats are summed in float32. What is no integer (a mean, a root, a logarithm) is taken of integers in
float64 and cut towards zero, as the result is declared an integer too; sums and products of integers wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops.elementwise import saturating
from qcompile.targets.coreml.reference.registry import op

Reduce = Callable[[Tensor, list[int], bool], Tensor]
"""Of a tensor, over dimensions (at least one), which stay with size 1 or go."""


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep).to(x.dtype)


def _l1_norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(torch.abs(x), axes, keep)


def _sum_square(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(torch.square(x), axes, keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keep).to(x.dtype)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.mean(x, axes, keep)


def _l2_norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(torch.square(x), axes, keep).sqrt()


def _log_sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sum(x, axes, keep).log()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keep)


def _max(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amax(_filled(x), axes, keep)


def _min(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.amin(_filled(x), axes, keep)


def _filled(x: Tensor) -> Tensor:
    if x.numel() == 0:
        raise ExecutionError("nothing is the largest or the smallest of no elements")
    return x


def _through_double(function: Reduce) -> Reduce:
    """Let a function of floats take integers too."""

    def reduce(x: Tensor, axes: list[int], keep: bool) -> Tensor:
        if x.is_floating_point():
            return function(x, axes, keep)
        return saturating(function(x.double(), axes, keep), x.dtype)

    return reduce


_REDUCTIONS: dict[str, Reduce] = {
    "reduce_l1_norm": _l1_norm,
    "reduce_l2_norm": _through_double(_l2_norm),
    "reduce_log_sum": _through_double(_log_sum),
    "reduce_log_sum_exp": _through_double(_log_sum_exp),
    "reduce_max": _max,
    "reduce_mean": _through_double(_mean),
    "reduce_min": _min,
    "reduce_prod": _prod,
    "reduce_sum": _sum,
    "reduce_sum_square": _sum_square,
}


def _register(name: str, function: Reduce) -> None:
    @op(name)
    def reduction(
        x: Tensor, axes: Tensor | None = None, keep_dims: Tensor | bool = False
    ) -> Tensor:
        dims = [_axis(a, x.ndim) for a in (range(x.ndim) if axes is None else axes.tolist())]
        if len(set(dims)) != len(dims):
            raise ExecutionError(f"{name} has an axis twice in {dims}")
        if not dims:  # torch reads no dimensions as all of them
            return function(x.unsqueeze(-1), [x.ndim], False)
        return function(x, dims, bool(keep_dims))


for _name, _function in _REDUCTIONS.items():
    _register(_name, _function)


@op("reduce_argmax")
def reduce_argmax(
    x: Tensor,
    axis: Tensor | int = -1,
    keep_dims: Tensor | bool = False,
    output_dtype: str = "int32",
) -> Tensor:
    """The index of the largest element; of the first of equal ones, which MIL leaves open."""
    found = torch.argmax(_filled(x), _axis(int(axis), x.ndim), bool(keep_dims))
    return found.to(_index_dtype(output_dtype))


@op("reduce_argmin")
def reduce_argmin(
    x: Tensor,
    axis: Tensor | int = -1,
    keep_dims: Tensor | bool = False,
    output_dtype: str = "int32",
) -> Tensor:
    """The index of the smallest element; of the first of equal ones, which MIL leaves open."""
    found = torch.argmin(_filled(x), _axis(int(axis), x.ndim), bool(keep_dims))
    return found.to(_index_dtype(output_dtype))


def _index_dtype(name: str) -> torch.dtype:
    dtypes = {"int32": torch.int32, "uint16": torch.uint16}
    if name.lower() not in dtypes:
        raise ExecutionError(f"an index is an int32 or a uint16, not a {name}")
    return dtypes[name.lower()]


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise ExecutionError(f"axis {axis} is reduced, but there are {rank} dimensions")
    return axis % rank


@op("classify")
def classify(
    probabilities: Tensor, classes: Sequence[str | Tensor] | Tensor
) -> tuple[str | Tensor, dict[str | int, float]]:
    """Return the label of the largest probability and the probabilities by label.

    They are what Core ML gives to an app: a string or an integer, and a dictionary. The first of equal
    probabilities wins. A label that stands twice keeps its last probability.

    Raises:
        ExecutionError: There is not one label for each probability.
    """
    labels = [c if isinstance(c, str) else int(c) for c in classes]
    values = probabilities.flatten().tolist()
    if not labels or len(labels) != len(values):
        raise ExecutionError(f"classify has {len(values)} probabilities of {len(labels)} labels")
    best = labels[int(torch.argmax(probabilities))]
    label = best if isinstance(best, str) else torch.tensor(best, dtype=torch.int64)
    return label, dict(zip(labels, values, strict=True))
