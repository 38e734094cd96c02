"""Lists of tensors of one type, as TensorFlow's ``TensorArray`` becomes in MIL.

A list grows when something is written beyond its end. What was never written reads as zeros, as in the
lists of Core ML's neural network format. Its ops return a new list.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.gather import within
from qcompile.targets.coreml.reference.registry import op
from qcompile.targets.coreml.reference.types import DTYPES


@dataclass(frozen=True)
class TensorList:
    """A list.

    Args:
        items: The tensors; ``None`` for one that was never written.
        dtype: Of all of them.
        shape: Of all of them; ``None`` for a size that the first tensor written decides.
        grows: Whether its length may change.
    """

    items: tuple[Tensor | None, ...]
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    grows: bool

    def read(self, index: int) -> Tensor:
        """Return an item, zeros if it was never written.

        Raises:
            ExecutionError: It was never written, and its shape is not known.
        """
        item = self.items[index]
        if item is not None:
            return item
        known = [size for size in self.shape if size is not None]
        if len(known) < len(self.shape):
            raise ExecutionError(f"item {index} of a list is read, but no item was ever written")
        return torch.zeros(bounded(known, self.dtype), dtype=self.dtype)

    def write(self, indices: list[int], values: Tensor) -> TensorList:
        """Return the list with ``values[i]`` at ``indices[i]``.

        Raises:
            ExecutionError: The list would have to grow and may not, or a value has another type.
        """
        shape = self._shape_with(values[0]) if len(values) else self.shape
        length = max([len(self.items), *(index + 1 for index in indices)])
        if min(indices, default=0) < 0 or (length > len(self.items) and not self.grows):
            raise ExecutionError(f"indices {indices} lie outside a list of {len(self.items)} items")
        items = list(self.items) + [None] * (_bounded_length(length) - len(self.items))
        for index, value in zip(indices, values, strict=True):
            items[index] = value
        return replace(self, items=tuple(items), shape=shape)

    def _shape_with(self, value: Tensor) -> tuple[int, ...]:
        fits = len(value.shape) == len(self.shape) and all(
            wanted in (None, size) for size, wanted in zip(value.shape, self.shape, strict=True)
        )
        if not fits or value.dtype != self.dtype:
            raise ExecutionError(
                f"a list of {self.dtype} {list(self.shape)} takes no {value.dtype} {list(value.shape)}"
            )
        return tuple(value.shape)


@op("make_list", floats="as_is")
def make_list(
    elem_shape: Tensor | str | list[Tensor | str] | tuple[()] = (),
    init_length: Tensor | int = 1,
    dynamic_length: Tensor | bool = True,
    dtype: str = "fp32",
) -> TensorList:
    """Return a list; a size that is a string, the name of a symbol, is known when it is written to."""
    if dtype not in DTYPES:
        raise ExecutionError(f"a list has the element type {dtype!r}, which is not known")
    sizes = elem_shape if isinstance(elem_shape, list | tuple) else [elem_shape]
    shape = tuple(None if isinstance(size, str) else int(size) for size in sizes)
    items = (None,) * _bounded_length(int(init_length))
    return TensorList(items, DTYPES[dtype].torch, shape, bool(dynamic_length))


@op("list_length", floats="as_is")
def list_length(ls: TensorList) -> Tensor:
    """Return the number of items."""
    return torch.tensor(len(ls.items), dtype=torch.int32)


@op("list_read", floats="as_is")
def list_read(ls: TensorList, index: Tensor) -> Tensor:
    """Return one item."""
    return ls.read(int(within(index.reshape(-1), len(ls.items), wrap=False)))


@op("list_write", floats="as_is")
def list_write(ls: TensorList, index: Tensor, value: Tensor) -> TensorList:
    """Return the list with one item replaced."""
    return ls.write([int(index)], value[None])


@op("list_gather", floats="as_is")
def list_gather(ls: TensorList, indices: Tensor) -> Tensor:
    """Return items, stacked."""
    at = within(indices, len(ls.items), wrap=False).tolist()
    if not at:
        known = [0 if size is None else size for size in ls.shape]
        return torch.zeros((0, *known), dtype=ls.dtype)
    first = ls.read(at[0])
    bounded((len(at), math.prod(first.shape)), ls.dtype)
    return torch.stack([ls.read(index) for index in at])


@op("list_scatter", floats="as_is")
def list_scatter(ls: TensorList, indices: Tensor, value: Tensor) -> TensorList:
    """Return the list with ``value[i]`` at ``indices[i]``."""
    if indices.numel() != len(value):
        raise ExecutionError(f"{len(value)} values are scattered to {indices.numel()} indices")
    return ls.write([int(index) for index in indices.tolist()], value)


def _bounded_length(length: int) -> int:
    return bounded((length,), torch.int64)[0]
