"""Tensors in files that have not been read: how each is to be read, and what is made of it then."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from qcompile.compiler.ir.tensor_file import TensorPlace, find_tensor

_ROWS = 4096
"""Of a matrix that are compared at once."""
_FEW = 256
"""Rows that are multiplied at once."""


Part: TypeAlias = Callable[[], Tensor]
"""Reads some rows."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read.

    Args:
        file: The file.
        key: Its name there.
        dtype: What it is converted to, if not its own.
        rounded_to: A dtype that it is rounded to first.
        transposed: The file holds ``[in, out]``, and ``[out, in]`` is wanted.
        finite: Whether NaN and infinity are refused.
        entry: Of the first axis, if that alone is wanted: one expert of many.
        rows: First and last, not included, of that entry, if not all are wanted.
    """

    file: Path
    key: str
    dtype: torch.dtype | None = None
    rounded_to: torch.dtype | None = None
    transposed: bool = False
    finite: bool = False
    entry: int | None = None
    rows: tuple[int, int] | None = None

    def load(self) -> Tensor:
        """Read the tensor.

        Raises:
            ModelError: It holds NaN or infinity, and is to be finite.
        """
        return self._read(self.place())

    def parts(self, rows: int) -> list[Part]:
        """Return what reads so many rows each, without the others where the file allows it."""
        place = self.place()
        if place is None or self.transposed:
            return parts_of(self.load(), rows)
        count = place.shape[0]
        ends = [(first, min(first + rows, count)) for first in range(0, count, rows)]
        return [partial(self._read, place.some(end)) for end in ends]

    def _read(self, place: TensorPlace | None) -> Tensor:
        if place is None:
            with safe_open(self.file, framework="pt") as reader:
                tensor: Tensor = self._part(reader)
            dtype = self.dtype or tensor.dtype
            tensor = tensor.to(self.rounded_to or dtype).to(dtype)
        else:
            dtype = self.dtype or place.dtype
            tensor = place.read(dtype, self.rounded_to or dtype, finite=self.finite)
        return tensor.t().contiguous() if self.transposed else tensor

    def place(self) -> TensorPlace | None:
        """Return where it lies; ``None`` if elements of its kind are not read here."""
        found = find_tensor(self.file, self.key)
        if found is None or self.entry is None:
            return found
        return found.part(self.entry, self.rows or (0, found.shape[1]))

    def shape(self) -> tuple[int, ...]:
        """Return its shape without reading it."""
        with safe_open(self.file, framework="pt") as reader:
            shape = tuple(reader.get_slice(self.key).get_shape())
        if self.entry is not None:
            first, last = self.rows or (0, shape[1])
            shape = (last - first, *shape[2:])
        return shape[::-1] if self.transposed else shape

    def _part(self, reader: Any) -> Tensor:
        """Return what is wanted of the file's tensor, as it is there."""
        if self.entry is None:
            return reader.get_tensor(self.key)  # type: ignore[no-any-return]
        rows = slice(*self.rows) if self.rows else slice(None)
        return reader.get_slice(self.key)[self.entry, rows].contiguous()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of a file of their own that have not been read.

    Args:
        file: The file, which holds nothing else.
        rows: That they are cut into.
    """

    file: Path
    rows: int

    def load(self) -> Tensor:
        """Read them: uint8 ``[rows, bytes]``."""
        return torch.from_numpy(np.fromfile(self.file, dtype=np.uint8)).reshape(self.rows, -1)

    def shape(self) -> tuple[int, ...]:
        """Return their shape without reading them."""
        return self.rows, self.file.stat().st_size // self.rows


@dataclass(frozen=True, eq=False)
class ScaledTensor:
    """A stored tensor that is multiplied whenever it is read.

    Args:
        stored: The tensor as it is stored.
        factors: float64, one for each entry along ``axis``.
        axis: Of the tensor.
        shift: Added before, taken away after.
    """

    stored: Stored
    factors: Tensor
    axis: int
    shift: float = 0.0

    def load(self) -> Tensor:
        """Read and multiply the tensor."""
        return scaled(self.stored.load(), self.factors, self.axis, self.shift)

    def shape(self) -> tuple[int, ...]:
        """Return its shape without reading it."""
        return self.stored.shape()


Stored: TypeAlias = StoredTensor | StoredBytes | ScaledTensor


def scaled(tensor: Tensor, factors: Tensor, axis: int, shift: float) -> Tensor:
    """Return ``(tensor + shift) * factors - shift``, computed in float64, rounded once."""
    along = factors.double().reshape(-1, *[1] * (tensor.dim() - 1 - axis))
    found = torch.empty_like(tensor)
    for at in range(0, len(tensor), _FEW):  # float64 of all of a large matrix would not fit
        part = slice(at, at + _FEW)
        here = along[part] if axis == 0 else along
        found[part] = ((tensor[part].double() + shift) * here - shift).to(tensor.dtype)
    return found


def same_numbers(first: StoredTensor, second: StoredTensor) -> bool:
    """Return whether two tensors in files are equal; a part of each is read at a time."""
    with safe_open(first.file, "pt") as one, safe_open(second.file, "pt") as other:
        a, b = one.get_slice(first.key), other.get_slice(second.key)
        rows = a.get_shape()[0]
        parts = range(0, rows, _ROWS)
        return a.get_shape() == b.get_shape() and all(
            torch.equal(a[i : i + _ROWS], b[i : i + _ROWS]) for i in parts
        )


@cache
def stored_digest(stored: Stored) -> str:
    """Return the SHA-256 of the bytes as they are stored, and of what is made of them."""
    if not isinstance(stored, StoredTensor):
        return digest(stored.load())
    place = stored.place()
    if place is None or stored.transposed:
        raw = digest(replace(stored, dtype=None, rounded_to=None).load())
    else:
        raw = place.sha256(finite=stored.finite)
    own = None if place is None else place.dtype
    if stored.dtype in (None, own) and stored.rounded_to is None:
        return raw
    made = f"{raw} {stored.dtype} {stored.rounded_to}"
    return hashlib.sha256(made.encode()).hexdigest()


def digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def parts_of(tensor: Tensor, rows: int) -> list[Part]:
    """Return what gives so many rows each of a tensor that is in memory."""
    return [partial(_given, part) for part in tensor.split(rows)]


def _given(tensor: Tensor) -> Tensor:
    return tensor


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return what a safetensors file holds, by name, without reading any of it."""
    with safe_open(file, framework="pt") as reader:
        return {key: StoredTensor(file, key) for key in reader.keys()}  # noqa: SIM118
