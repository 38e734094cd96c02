"""The constants of a graph by name: in memory, or read from safetensors when they are asked for.

A tensor in memory is an attribute of the graph's module. One that is stored is a ``meta`` tensor there
(shape and dtype, no data) and a ``StoredTensor`` here; each look-up reads it anew, so that a model
larger than memory is touched one tensor at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, fx, nn

from qcompile.compiler.ir.tensor_file import TensorPlace, find_tensor

_ROWS = 4096
"""Of a matrix that are compared at once."""
_FEW = 256
"""Rows that are multiplied at once."""


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
        place = self.place()
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
        return _scaled(self.stored.load(), self.factors, self.axis, self.shift)

    def shape(self) -> tuple[int, ...]:
        """Return its shape without reading it."""
        return self.stored.shape()


Stored: TypeAlias = StoredTensor | StoredBytes | ScaledTensor


def _scaled(tensor: Tensor, factors: Tensor, axis: int, shift: float) -> Tensor:
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


def stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros that takes the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)


@cache
def _stored_digest(stored: Stored) -> str:
    """Return the SHA-256 of the bytes as they are stored, and of what is made of them."""
    if not isinstance(stored, StoredTensor):
        return _digest(stored.load())
    place = stored.place()
    if place is None or stored.transposed:
        raw = _digest(replace(stored, dtype=None, rounded_to=None).load())
    else:
        raw = place.sha256(finite=stored.finite)
    own = None if place is None else place.dtype
    if stored.dtype in (None, own) and stored.rounded_to is None:
        return raw
    made = f"{raw} {stored.dtype} {stored.rounded_to}"
    return hashlib.sha256(made.encode()).hexdigest()


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return what a safetensors file holds, by name, without reading any of it."""
    with safe_open(file, framework="pt") as reader:
        return {key: StoredTensor(file, key) for key in reader.keys()}  # noqa: SIM118


class Weights(MutableMapping[str, Tensor]):
    """The constants that a graph's ``get_attr`` nodes name, in the order of their first use."""

    def __init__(self, module: fx.GraphModule, stored: Mapping[str, Stored] | None = None) -> None:
        self._module = module
        self._stored = dict(stored or {})

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.peek(name)
        if tensor.is_meta and name in self._stored:
            return self._stored[name].load()
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        owner, attribute = self._owner(name, create=True)
        if hasattr(owner, attribute):
            delattr(owner, attribute)
        owner.register_buffer(attribute, tensor.detach())
        self._stored.pop(name, None)

    def __delitem__(self, name: str) -> None:
        self.peek(name)  # a KeyError where there is none
        owner, attribute = self._owner(name)
        delattr(owner, attribute)
        self._stored.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        nodes = self._module.graph.find_nodes(op="get_attr")
        return iter(dict.fromkeys(str(node.target) for node in nodes))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return any(n.target == name for n in self._module.graph.find_nodes(op="get_attr"))

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Those that are read on demand."""
        return self._stored

    def store(self, name: str, stored: Stored) -> None:
        """Let a constant, on ``meta``, be read on demand."""
        assert self.peek(name).is_meta
        self._stored[name] = stored

    def round_stored(self, name: str, dtype: torch.dtype) -> None:
        """Let a stored tensor be rounded to ``dtype`` whenever it is read."""
        stored = self._stored[name]
        assert isinstance(stored, StoredTensor)
        self._stored[name] = replace(stored, rounded_to=dtype)

    def scale(self, name: str, factors: Tensor, axis: int, shift: float = 0.0) -> None:
        """Multiply a constant along an axis; a stored one whenever it is read.

        Args:
            name: Of the constant.
            factors: One for each entry along ``axis``.
            axis: Counted from the first.
            shift: Added before and taken away after: gemma's norms store w for 1 + w.
        """
        if self.peek(name).is_meta and name in self._stored:
            self._stored[name] = ScaledTensor(self._stored[name], factors, axis, shift)
        else:
            self[name] = _scaled(self[name], factors, axis, shift)

    def transpose_stored(self, name: str) -> None:
        """Let a stored matrix be the transposed one whenever it is read."""
        stored, value = self._stored[name], self.peek(name)
        assert isinstance(stored, StoredTensor)
        self[name] = value.t()
        self._stored[name] = replace(stored, transposed=not stored.transposed)

    def peek(self, name: str) -> Tensor:
        """Return the tensor for its shape and dtype only: it may be on ``meta``."""
        owner, attribute = self._owner(name)
        tensor = getattr(owner, attribute, None)
        if not isinstance(tensor, Tensor):
            raise KeyError(name)
        return tensor

    def digest(self, name: str) -> str:
        """Return eight hexadecimal digits of ``sha256``."""
        return self.sha256(name)[:8]

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of the tensor's bytes; of a stored one's as they are stored."""
        tensor = self.peek(name)
        if tensor.is_meta:
            return _stored_digest(self._stored[name]) if name in self._stored else "meta"
        return _digest(tensor)

    def _owner(self, name: str, *, create: bool = False) -> tuple[nn.Module, str]:
        *path, attribute = name.split(".")
        owner: nn.Module = self._module
        for part in path:
            if not hasattr(owner, part):
                if not create:
                    raise KeyError(name)
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        return owner, attribute
