"""Core ML's types: element types with their torch equivalents, and the types of values."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DType:
    """An element type.

    Args:
        name: MIL's, ``fp16``.
        bits: Of one element.
        torch: What holds it here; types below a byte lie one code a byte, strings in no tensor.
    """

    name: str
    bits: int
    torch: torch.dtype


_ALL = (
    *(DType(n, b, t) for n, b, t in (
        ("bool", 8, torch.bool), ("string", 8, torch.uint8),
        ("fp16", 16, torch.float16), ("fp32", 32, torch.float32), ("fp64", 64, torch.float64),
        ("bf16", 16, torch.bfloat16),
        ("int8", 8, torch.int8), ("int16", 16, torch.int16), ("int32", 32, torch.int32),
        ("int64", 64, torch.int64), ("int4", 4, torch.int8),
        ("uint8", 8, torch.uint8), ("uint16", 16, torch.uint16), ("uint32", 32, torch.uint32),
        ("uint64", 64, torch.uint64),
        ("uint1", 1, torch.uint8), ("uint2", 2, torch.uint8), ("uint3", 3, torch.uint8),
        ("uint4", 4, torch.uint8), ("uint6", 6, torch.uint8),
    )),
)  # fmt: skip
DTYPES = {d.name: d for d in _ALL}
"""All element types by name."""

_PROTO_NAMES = {"FLOAT16": "fp16", "FLOAT32": "fp32", "FLOAT64": "fp64", "BFLOAT16": "bf16"}


def dtype_of_proto(name: str) -> DType | None:
    """Return the type of a name of MIL.proto's ``DataType``, ``None`` for one that is not known."""
    return DTYPES.get(_PROTO_NAMES.get(name, name.lower()))


@dataclass(frozen=True)
class TensorType:
    """The type of a tensor.

    Args:
        element: Its element type.
        shape: Sizes; ``None`` for one that is not known before the run.
    """

    element: DType
    shape: tuple[int | None, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype of its values."""
        return self.element.torch

    def __str__(self) -> str:
        sizes = ", ".join("?" if s is None else str(s) for s in self.shape)
        return f"{self.element.name}[{sizes}]"


@dataclass(frozen=True)
class ListType:
    """A list of tensors, as ``make_list`` makes; the length may be unknown."""

    element: ValueType
    length: int | None


@dataclass(frozen=True)
class DictionaryType:
    """The probabilities of a classifier by label."""

    key: ValueType
    value: ValueType


@dataclass(frozen=True)
class StateType:
    """A tensor that outlives a prediction."""

    wrapped: TensorType


ValueType = TensorType | ListType | DictionaryType | StateType
