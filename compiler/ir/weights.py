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

import torch
from safetensors import safe_open
from torch import Tensor, fx, nn


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file that has not been read.

    Args:
        file: The file.
        key: Its name there.
        dtype: What it is converted to, if not its own.
        rounded_to: A dtype that it is rounded to first.
    """

    file: Path
    key: str
    dtype: torch.dtype | None = None
    rounded_to: torch.dtype | None = None

    def load(self) -> Tensor:
        """Read the tensor."""
        with safe_open(self.file, framework="pt") as reader:
            tensor: Tensor = reader.get_tensor(self.key)
        dtype = self.dtype or tensor.dtype
        return tensor.to(self.rounded_to or dtype).to(dtype)

    def shape(self) -> tuple[int, ...]:
        """Return its shape without reading it."""
        with safe_open(self.file, framework="pt") as reader:
            return tuple(reader.get_slice(self.key).get_shape())


def stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros that takes the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)


@cache
def _stored_digest(stored: StoredTensor) -> str:
    return _digest(stored.load())


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()[:8]


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """Return what a safetensors file holds, by name, without reading any of it."""
    with safe_open(file, framework="pt") as reader:
        return {key: StoredTensor(file, key) for key in reader.keys()}  # noqa: SIM118


class Weights(MutableMapping[str, Tensor]):
    """The constants that a graph's ``get_attr`` nodes name, in the order of their first use."""

    def __init__(
        self, module: fx.GraphModule, stored: Mapping[str, StoredTensor] | None = None
    ) -> None:
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

    @property
    def stored(self) -> Mapping[str, StoredTensor]:
        """Those that are read on demand."""
        return self._stored

    def round_stored(self, name: str, dtype: torch.dtype) -> None:
        """Let a stored tensor be rounded to ``dtype`` whenever it is read."""
        self._stored[name] = replace(self._stored[name], rounded_to=dtype)

    def peek(self, name: str) -> Tensor:
        """Return the tensor for its shape and dtype only: it may be on ``meta``."""
        owner, attribute = self._owner(name)
        tensor = getattr(owner, attribute, None)
        if not isinstance(tensor, Tensor):
            raise KeyError(name)
        return tensor

    def digest(self, name: str) -> str:
        """Return eight hexadecimal digits of the SHA-256 of the tensor's bytes."""
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
