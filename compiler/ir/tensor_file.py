"""A tensor of a safetensors file, a run of its elements after the other.

Reading in runs keeps what is done to an element in the cache, and takes memory for the result alone: the file
is not mapped, whose pages would count as the process's own.

Source: the format's specification (https://huggingface.co/docs/safetensors): eight bytes with the length of a
JSON header, the header, and the data that its ``data_offsets`` point into.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.errors import ModelError

RUN = 1 << 19
"""Bytes of a run; a multiple of every element's size."""
_LENGTH = 8
_MOST_HEADER = 100_000_000
"""Bytes; safetensors' own limit."""
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies.

    Args:
        file: In which.
        key: Its name there.
        dtype: Of its elements.
        shape: Of it.
        start: Of its first byte in the file.
    """

    file: Path
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def some(self, rows: tuple[int, int]) -> TensorPlace:
        """Return where some rows of a matrix lie: first and last, not included."""
        row = torch.Size(self.shape[1:]).numel() * self.dtype.itemsize
        shape = (rows[1] - rows[0], *self.shape[1:])
        return replace(self, shape=shape, start=self.start + rows[0] * row)

    def part(self, entry: int, rows: tuple[int, int]) -> TensorPlace:
        """Return where some rows of one entry of the first axis lie.

        Args:
            entry: Which.
            rows: First and last, not included.
        """
        row = torch.Size(self.shape[2:]).numel() * self.dtype.itemsize
        start = self.start + (entry * self.shape[1] + rows[0]) * row
        return replace(self, shape=(rows[1] - rows[0], *self.shape[2:]), start=start)

    def read(self, dtype: torch.dtype, rounded_to: torch.dtype, *, finite: bool) -> Tensor:
        """Return the tensor.

        Args:
            dtype: Of the result.
            rounded_to: A dtype that elements are rounded to first.
            finite: Whether NaN and infinity are refused.

        Raises:
            ModelError: It is cut off, or not finite and is to be.
        """
        found, at, bad = torch.empty(self.shape, dtype=dtype), 0, 0
        flat = found.view(-1)
        for run in self.runs():
            bad += _not_finite(run) if finite else 0
            flat[at : at + len(run)] = run.to(rounded_to)
            at += len(run)
        self._check(bad)
        return found

    def sha256(self, *, finite: bool) -> str:
        """Return the SHA-256 of the bytes.

        Raises:
            ModelError: As ``read``.
        """
        digest, bad = hashlib.sha256(), 0
        for run in self.runs():
            bad += _not_finite(run) if finite else 0
            digest.update(run.view(torch.uint8).numpy().data)
        self._check(bad)
        return digest.hexdigest()

    def _check(self, bad: int) -> None:
        if bad:
            count = torch.Size(self.shape).numel()
            raise ModelError(
                f"{self.key} in {self.file} holds {bad:,} of {count:,} values that are NaN or "
                "infinite: no such model works; download it again, or save it without them"
            )

    def runs(self) -> Iterator[Tensor]:
        """Yield its elements in order, some at a time; each run is overwritten by the next.

        Raises:
            ModelError: The file ends before.
        """
        buffer = np.empty(RUN, np.uint8)
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            for at in range(0, self.nbytes, RUN):
                part = buffer[: min(RUN, self.nbytes - at)]
                _fill(stream, part, self.file)
                yield torch.from_numpy(part).view(self.dtype)


def find_tensor(file: Path, key: str) -> TensorPlace | None:
    """Return where a tensor of a file lies; ``None`` if elements of its kind are not known here."""
    stat = file.stat()
    entry, start = _header(file, stat.st_size, stat.st_mtime_ns)
    found = entry[key]
    dtype = _DTYPES.get(found["dtype"])
    if dtype is None:
        return None
    return TensorPlace(
        file, key, dtype, tuple(found["shape"]), start + int(found["data_offsets"][0])
    )


@lru_cache(maxsize=512)
def _header(file: Path, size: int, changed: int) -> tuple[dict[str, Any], int]:
    """Return a file's header and where its data begins; size and time tell one content from another."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        if length > min(size - _LENGTH, _MOST_HEADER):
            raise ModelError(f"{file} is no whole safetensors file: download it again")
        found: dict[str, Any] = json.loads(stream.read(length))
    return found, _LENGTH + length


def _not_finite(run: Tensor) -> int:
    """Return how many elements are NaN or infinite."""
    if not run.is_floating_point() or all(bound.isfinite() for bound in torch.aminmax(run)):
        return 0
    return int((~run.isfinite()).sum())


def _fill(stream: Any, part: Any, file: Path) -> None:
    view = memoryview(part)
    while len(view):
        count = stream.readinto(view)
        if not count:
            raise ModelError(f"{file} ends before its tensors do: download it again")
        view = view[count:]
