"""The two layouts of llama.cpp's importance matrices, read without trusting a size.

GGUF is read here and not by the ``gguf`` package, which allocates what a file's counts say.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.ir.errors import CalibrationError

CHUNK_SIZE = 512
"""Tokens of a chunk where the file does not say: llama-imatrix's default."""
SUMS, COUNTS = ".in_sum2", ".counts"
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_F32 = 0
_LONGEST_NAME = 1 << 16
_MOST_AXES = 4
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class Entry:
    """A weight.

    Args:
        sums: Sums of squares, float64 ``[n_mat, n_in]``.
        counts: Rows that were summed, float32 ``[n_mat]``.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float32]


@dataclass(frozen=True)
class Stored:
    """What a file holds.

    Args:
        entries: By name of the weight.
        chunk_size: Tokens of a chunk.
        chunk_count: Chunks.
        datasets: Where the text came from.
    """

    entries: dict[str, Entry]
    chunk_size: int
    chunk_count: int
    datasets: tuple[str, ...]


def parse(file: Path) -> Stored:
    """Read a file of either layout.

    Raises:
        CalibrationError: It is missing, truncated, or no imatrix.
    """
    if not file.is_file():
        raise CalibrationError(f"the imatrix {file} does not exist, or is no file")
    if file.stat().st_size == 0:
        raise damaged(file, "nothing: it is empty")
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = _Cursor(data, file)
        return _gguf(cursor) if data[:4] == b"GGUF" else _legacy(cursor)


def damaged(file: Path, what: str) -> CalibrationError:
    """Return the error of a file that holds something else."""
    return CalibrationError(
        f"{file} is no imatrix of llama.cpp that can be used: it holds {what}; give a file of "
        "llama-imatrix (.gguf or .dat) or of qcompile imatrix"
    )


class _Cursor:
    """Reads on, and never past the end."""

    def __init__(self, data: Any, file: Path) -> None:
        self.data, self.file = data, file
        self.at, self.end = 0, len(data)

    def take(self, size: int) -> bytes:
        if size < 0 or size > self.end - self.at:
            raise damaged(
                self.file,
                f"{self.end:,} bytes and announces {max(size, 0):,} more at byte {self.at:,}: it is cut "
                "off, or another kind of file",
            )
        self.at += size
        found: bytes = self.data[self.at - size : self.at]
        return found

    def numbers(self, form: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{form}")
        return layout.unpack(self.take(layout.size))

    def number(self, form: str) -> int:
        return int(self.numbers(form)[0])

    def text(self, form: str) -> str:
        size = self.number(form)
        if size > _LONGEST_NAME:
            raise damaged(self.file, f"a text of {size:,} bytes at byte {self.at:,}")
        return self.take(size).decode("utf-8", "replace")

    def room_for(self, count: int, size: int) -> int:
        """Return a count of things of at least so many bytes, if there is room for them."""
        if count * size > self.end - self.at:
            raise damaged(
                self.file, f"{self.end:,} bytes and announces {count:,} parts: it is cut off"
            )
        return count


def _legacy(cursor: _Cursor) -> Stored:
    """Read ``.dat``: means times chunks, and what the text was."""
    count = cursor.number("i")
    if count < 1:
        raise damaged(cursor.file, f"{count} entries")
    entries: dict[str, Entry] = {}
    for _ in range(cursor.room_for(count, 12)):
        name = cursor.text("i")
        calls, size = cursor.numbers("ii")
        values = np.frombuffer(cursor.take(4 * size), "<f4").astype(np.float64)
        if name in entries or calls < 1 or not len(values):
            raise damaged(
                cursor.file, f"{name!r} twice, or without values ({size} of {calls} chunks)"
            )
        rows = calls * CHUNK_SIZE
        entries[name] = Entry(values[None] * CHUNK_SIZE, np.array([rows], np.float32))
    chunks, datasets = 0, []
    if cursor.at < cursor.end:  # older ones end here
        chunks = max(cursor.number("i"), 0)
        datasets = [cursor.text("i")]
    if cursor.at < cursor.end:
        raise damaged(cursor.file, f"{cursor.end - cursor.at:,} bytes after its end")
    return Stored(entries, CHUNK_SIZE, chunks, tuple(d for d in datasets if d))


def _gguf(cursor: _Cursor) -> Stored:
    """Read GGUF: sums and counts as tensors."""
    cursor.take(4)
    version, tensors, fields = cursor.numbers("IQQ")
    if version not in (2, 3):
        raise damaged(cursor.file, f"GGUF of version {version}, not 2 or 3")
    known = {}
    for _ in range(cursor.room_for(fields, 13)):
        name = cursor.text("Q")
        known[name] = _value(cursor, cursor.number("I"))
    table = [_row(cursor) for _ in range(cursor.room_for(tensors, 24))]
    alignment = _whole(known.get("general.alignment"), _DEFAULT_ALIGNMENT) or _DEFAULT_ALIGNMENT
    start = -(-cursor.at // alignment) * alignment
    if not any(name.endswith(SUMS) for name, *_ in table):
        kind = known.get("general.type", "model")
        raise damaged(cursor.file, f"GGUF of type {kind!r}, with no tensor called *{SUMS}")
    found: dict[str, NDArray[np.float64]] = {}
    for name, shape, kind, offset in table:
        if name in found or kind != _F32 or len(shape) > 2:
            raise damaged(cursor.file, f"{name!r} twice, or not in float32 with one or two axes")
        cursor.at = start + offset
        width, rows = (*shape, 1, 1)[:2]
        data = cursor.take(4 * width * rows)
        found[name] = np.frombuffer(data, "<f4").reshape(rows, width).astype(np.float64)
    datasets = known.get("imatrix.datasets")
    return Stored(
        _entries(found, cursor.file),
        _whole(known.get("imatrix.chunk_size"), CHUNK_SIZE) or CHUNK_SIZE,
        _whole(known.get("imatrix.chunk_count"), 0),
        tuple(d for d in datasets if isinstance(d, str)) if isinstance(datasets, list) else (),
    )


def _entries(found: dict[str, NDArray[np.float64]], file: Path) -> dict[str, Entry]:
    """Pair sums and counts.

    Raises:
        CalibrationError: One is without the other, or for another number of matrices.
    """
    names = {n.removesuffix(end) for n in found for end in (SUMS, COUNTS) if n.endswith(end)}
    entries = {}
    odd = []
    for name in sorted(names):
        sums, counts = found.get(name + SUMS), found.get(name + COUNTS)
        if sums is None or counts is None or counts.size != len(sums) or not sums.size:
            odd.append(name)
            continue
        entries[name] = Entry(sums, counts.ravel().astype(np.float32))
    if odd:
        raise damaged(file, f"sums without their counts for {', '.join(odd)}")
    return entries


def _row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Return a tensor's name, axes (innermost first), type and offset."""
    name, axes = cursor.text("Q"), cursor.number("I")
    if not 1 <= axes <= _MOST_AXES:
        raise damaged(cursor.file, f"a tensor {name!r} with {axes} axes")
    *shape, kind, offset = cursor.numbers(f"{axes}QIQ")
    return name, tuple(shape), kind, offset


def _value(cursor: _Cursor, kind: int) -> Any:
    """Return a field's value."""
    if kind == _STRING:
        return cursor.text("Q")
    if kind in _SCALARS:
        return cursor.numbers(_SCALARS[kind])[0]
    if kind != _ARRAY:
        raise damaged(cursor.file, f"a field of the unknown type {kind}")
    inner, count = cursor.numbers("IQ")
    if inner == _STRING:
        return [cursor.text("Q") for _ in range(cursor.room_for(count, 8))]
    if inner not in _SCALARS:
        raise damaged(cursor.file, f"an array of the unknown type {inner}")
    cursor.take(count * struct.calcsize(_SCALARS[inner]))
    return None


def _whole(value: Any, default: int) -> int:
    return value if type(value) is int and value >= 0 else default
