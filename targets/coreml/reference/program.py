"""The ML Program as plain data; ``proto.py`` reads it from a saved package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qcompile.targets.coreml.reference.types import TensorType, ValueType


@dataclass(frozen=True)
class Stored:
    """A constant in a blob file that has not been read.

    Args:
        type: Its type.
        file: Its name in the package, relative to the model.
        offset: Of its metadata.
    """

    type: TensorType
    file: str
    offset: int


Constant = Tensor | str | tuple[Any, ...] | Stored
Argument = str | Constant
"""A string that names a value is a ``Name``; a constant string is a plain ``str``."""


class Name(str):
    """The name of a value."""

    __slots__ = ()


@dataclass(frozen=True)
class Operation:
    """One op.

    Args:
        type: MIL's name of the op.
        inputs: By MIL's name: a ``Name``, a constant, or a list of both.
        outputs: Names and types.
        blocks: Of ``cond`` and ``while_loop``.
        name: Its own, for messages.
    """

    type: str
    inputs: Mapping[str, Argument | list[Argument]]
    outputs: tuple[tuple[str, ValueType], ...]
    blocks: tuple[Block, ...] = ()
    name: str = ""

    def reads(self) -> Iterator[str]:
        """Yield the names of values that it reads, those of its blocks aside."""
        for value in self.inputs.values():
            yield from (
                v for v in (value if isinstance(value, list) else [value]) if isinstance(v, Name)
            )


@dataclass(frozen=True)
class Block:
    """Ops in order, with what goes in and out."""

    inputs: tuple[tuple[str, ValueType], ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Function:
    """One function of a program; ``main`` unless it has several.

    Args:
        opset: ``CoreML5`` to ``CoreML8``: iOS 15 to 18.
        block: Its body; the block's inputs are the function's.
    """

    opset: str
    block: Block


@dataclass(frozen=True)
class Program:
    """All functions by name."""

    functions: Mapping[str, Function] = field(default_factory=dict)
