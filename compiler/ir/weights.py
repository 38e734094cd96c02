"""The constants of a graph by name: in memory, or read from safetensors when they are asked for.

A tensor in memory is an attribute of the graph's module. One that is stored is a ``meta`` tensor there
(shape and dtype, no data) and a ``StoredTensor`` here; each look-up reads it anew, so that a model
larger than memory is touched one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from qcompile.compiler.ir.stored import (
    Part,
    ScaledTensor,
    Stored,
    StoredTensor,
    digest,
    parts_of,
    scaled,
    stored_digest,
)


def stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor of zeros that takes the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)


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

    def parts(self, name: str, rows: int) -> list[Part]:
        """Return what gives so many rows of a constant each, one after the other.

        Rows of a stored tensor are read when they are asked for, so that the whole need not be in memory and
        several can be read side by side.
        """
        stored = self._stored.get(name) if self.peek(name).is_meta else None
        if isinstance(stored, StoredTensor):
            return stored.parts(rows)
        return parts_of(self[name], rows)

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
            self[name] = scaled(self[name], factors, axis, shift)

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
            return stored_digest(self._stored[name]) if name in self._stored else "meta"
        return digest(tensor)

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
