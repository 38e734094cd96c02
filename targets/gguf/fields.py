"""The typed values of a GGUF file's fields.

Python's types say which of GGUF's is meant: ``bool``, ``str`` (or ``bytes``), ``int`` (u32), ``float``
(f32), and sequences of these, whose integers are i32: what ``gguf.GGUFWriter`` writes for the keys of a
language model. ``Typed`` says any other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Number of the type in a file, and how ``struct`` packs a value of it.
_NUMBERS = {
    "u8": (0, "B"),
    "i8": (1, "b"),
    "u16": (2, "H"),
    "i16": (3, "h"),
    "u32": (4, "I"),
    "i32": (5, "i"),
    "f32": (6, "f"),
    "bool": (7, "?"),
    "u64": (10, "Q"),
    "i64": (11, "q"),
    "f64": (12, "d"),
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Typed:
    """A value, or a sequence of values, of a type that Python's does not say.

    Args:
        type_name: ``u8`` to ``u64``, ``i8`` to ``i64``, ``f32``, ``f64``, ``bool`` or ``str``.
        value: A value, or a list or tuple of them.
    """

    type_name: str
    value: Any


def text(value: str | bytes) -> bytes:
    """Return a string with its length before it."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def packed(key: str, value: Any) -> bytes:
    """Return the type and the bytes of a field.

    Raises:
        ValueError: GGUF has no type for it.
    """
    name = value.type_name if isinstance(value, Typed) else None
    plain = value.value if isinstance(value, Typed) else value
    try:
        if isinstance(plain, Sequence) and not isinstance(plain, str | bytes):
            return struct.pack("<I", _ARRAY) + _array(plain, name)
        name = name or _type_name(plain, "u32")
        return struct.pack("<I", _number(name)) + _values([plain], name)
    except (struct.error, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"the field {key!r} cannot be stored in GGUF: {error}") from error


def _array(values: Sequence[Any], name: str | None) -> bytes:
    if name is None:
        if not values:
            raise ValueError("an empty list has no type: leave it out, or say which with Typed")
        names = sorted({_type_name(value, "i32") for value in values})
        if len(names) > 1:
            raise ValueError(f"the values of a list have one type, not {', '.join(names)}")
        name = names[0]
    return struct.pack("<IQ", _number(name), len(values)) + _values(values, name)


def _type_name(value: Any, integers: str) -> str:
    for types, name in ((bool, "bool"), (int, integers), (float, "f32"), ((str, bytes), "str")):
        if isinstance(value, types):
            return name
    raise TypeError(f"a {type(value).__name__} is none of bool, int, float, str, bytes, or a list")


def _number(name: str) -> int:
    return _STRING if name == "str" else _NUMBERS[name][0]


def _values(values: Sequence[Any], name: str) -> bytes:
    if name == "str":
        return b"".join(map(text, values))
    return struct.pack(f"<{len(values)}{_NUMBERS[name][1]}", *values)
