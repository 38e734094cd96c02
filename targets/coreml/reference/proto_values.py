"""Reads types and constants from the protobuf of a program."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.targets.coreml.reference.blob import decode
from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.program import Constant, Stored
from qcompile.targets.coreml.reference.types import (
    DTYPES,
    DictionaryType,
    ListType,
    StateType,
    TensorType,
    ValueType,
    dtype_of_proto,
)

_HELD = {"floats": "fp32", "doubles": "fp64", "ints": "int32", "longInts": "int64", "bools": "bool"}


def value_type(proto: Any) -> ValueType:
    """Return a type.

    Raises:
        PackageError: It is of an unknown kind.
        ExecutionError: A value of it would be too large.
    """
    kind = proto.WhichOneof("type")
    if kind == "tensorType":
        return _tensor_type(proto.tensorType)
    if kind == "stateType":
        return StateType(_tensor_type(proto.stateType.wrappedType.tensorType))
    if kind == "listType":
        length = proto.listType.length
        known = int(length.constant.size) if length.WhichOneof("dimension") == "constant" else None
        return ListType(value_type(proto.listType.type), known)
    if kind == "dictionaryType":
        keys, values = proto.dictionaryType.keyType, proto.dictionaryType.valueType
        return DictionaryType(value_type(keys), value_type(values))
    raise PackageError("a value has no type" if kind is None else f"a value is a {kind}")


def _tensor_type(proto: Any) -> TensorType:
    name = _dtype_names().get(proto.dataType, str(proto.dataType))
    if (dtype := dtype_of_proto(name)) is None:
        raise PackageError(f"a tensor has the element type {name}, which is not known")
    sizes = [
        int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None
        for d in proto.dimensions
    ]
    bounded([size for size in sizes if size is not None], dtype.torch)
    return TensorType(dtype, tuple(sizes))


@cache
def _dtype_names() -> dict[int, str]:
    from coremltools.proto import MIL_pb2

    return {v.number: v.name for v in MIL_pb2.DataType.DESCRIPTOR.values}


def value(proto: Any) -> Constant:
    """Return a constant.

    Raises:
        PackageError: Its data does not fit its type.
    """
    kind = proto.WhichOneof("value")
    if kind == "blobFileValue":
        tensor = value_type(proto.type)
        if not isinstance(tensor, TensorType) or None in tensor.shape:
            raise PackageError("a stored constant is no tensor of known shape")
        return Stored(tensor, proto.blobFileValue.fileName, int(proto.blobFileValue.offset))
    if kind != "immediateValue":
        raise PackageError("a constant has no value")
    held = proto.immediateValue.WhichOneof("value")
    if held in ("tuple", "list"):
        parts = tuple(value(v) for v in getattr(proto.immediateValue, held).values)
        if any(isinstance(part, Stored) for part in parts):
            raise PackageError("a part of a constant lies in a weight file")
        return parts
    if held != "tensor":
        raise PackageError("a constant is empty" if held is None else f"a constant is a {held}")
    kind_of = value_type(proto.type)
    if not isinstance(kind_of, TensorType) or None in kind_of.shape:
        raise PackageError("a constant is no tensor of known shape")
    return _immediate(proto.immediateValue.tensor, kind_of)


def _immediate(proto: Any, kind: TensorType) -> Constant:
    held = proto.WhichOneof("value")
    data = getattr(proto, held).values if held else []
    shape = tuple(size or 0 for size in kind.shape)
    count = math.prod(shape)
    if held == "bytes" and kind.element.name != "string":
        raw = np.frombuffer(bytes(data), np.uint8)
        if len(raw) != (count * kind.element.bits + 7) // 8:
            raise PackageError(f"a constant {kind} has {len(raw)} bytes")
        return decode(raw.copy(), kind.element, count).reshape(shape)
    if len(data) != count:
        raise PackageError(f"a constant {kind} has {len(data)} values")
    if held in (None, "strings") and kind.element.name == "string":
        return str(data[0]) if not shape else tuple(str(s) for s in data)
    if (held is not None and held not in _HELD) or kind.element.name == "string":
        raise PackageError(f"a constant {kind} holds {held}")
    return _converted(list(data), held or "floats", kind).reshape(shape)


def _converted(data: list[Any], held: str, kind: TensorType) -> Tensor:
    """Return values that the protobuf widened; a float may be rounded, any other must fit."""
    wide = torch.tensor(data, dtype=DTYPES[_HELD[held]].torch)
    narrow = wide.to(kind.dtype)
    if not kind.dtype.is_floating_point and not torch.equal(narrow.to(wide.dtype), wide):
        raise PackageError(f"a constant {kind} has values beyond its type")
    return narrow
