"""weight.bin: the blob file of an ML Program, mapped into memory and read a tensor at a time.

Layout, little endian: a header of 64 bytes (count u32, version u32 = 2, zeros), then blobs on 64-byte
boundaries. A blob is 64 bytes of metadata (sentinel 0xDEADBEEF u32, dtype u32, bytes u64, position of the
data u64, padding in bits u64, zeros) and its data. Types below one byte are packed without gaps, the
lowest bits first. Source: coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.types import DType

_HEADER, _METADATA = struct.Struct("<II"), struct.Struct("<IIQQQ")
_ALIGNMENT, _SENTINEL, _VERSION = 64, 0xDEADBEEF, 2
_BLOB_TYPES = {
    **{1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 5: "bf16", 6: "int16", 7: "uint16"},
    **{8: "int4", 9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3", 13: "uint6"},
    **{14: "int32", 15: "uint32"},
}


class BlobFile:
    """One blob file.

    Args:
        file: Its path.

    Raises:
        PackageError: It is no blob file.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with file.open("rb") as stream:
                self._data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise PackageError(f"{file} cannot be read: {error}") from error
        self.size = len(self._data)
        if self.size < _ALIGNMENT or _HEADER.unpack_from(self._data)[1] != _VERSION:
            raise PackageError(f"{file} is no blob file of version {_VERSION}")

    def read(self, offset: int, dtype: DType, shape: Sequence[int]) -> Tensor:
        """Return the tensor whose metadata stands at ``offset``.

        Types of whole bytes are views into the mapped file, which must not be written to; a type below
        one byte is unpacked to one byte a code.

        Raises:
            PackageError: There is no such blob, or it has another type or size.
        """
        start, size = self.locate(offset, dtype, shape)
        raw = np.frombuffer(self._data, np.uint8, size, start)
        return decode(raw, dtype, math.prod(shape)).reshape(tuple(shape))

    def locate(self, offset: int, dtype: DType, shape: Sequence[int]) -> tuple[int, int]:
        """Return where the data of a tensor begins, and how many bytes it has.

        Raises:
            PackageError: As for ``read``.
        """
        where = f"the weight at {offset} of {self.file.name}"
        if not 0 < offset <= self.size - _ALIGNMENT:
            raise PackageError(f"{where} lies outside of the file, which has {self.size} bytes")
        if offset % _ALIGNMENT:
            raise PackageError(f"{where} is not on a boundary of {_ALIGNMENT} bytes")
        sentinel, kind, size, start, _ = _METADATA.unpack_from(self._data, offset)
        if sentinel != _SENTINEL:
            raise PackageError(f"{where} has no metadata: the file is damaged")
        if _BLOB_TYPES.get(kind) != dtype.name:
            found = _BLOB_TYPES.get(kind, f"type {kind}")
            raise PackageError(f"{where} holds {found}, the program says {dtype.name}")
        count = math.prod(shape)
        if size != (count * dtype.bits + 7) // 8 or start + size > self.size:
            raise PackageError(
                f"{where} has {size} bytes from {start} on, which is no {dtype.name}{list(shape)}"
            )
        return start, size


def decode(raw: NDArray[np.uint8], dtype: DType, count: int) -> Tensor:
    """Return ``count`` elements of a type from their bytes, ``[count]``."""
    if count == 0:
        return torch.empty(0, dtype=dtype.torch)
    if dtype.torch == torch.bool:
        return torch.from_numpy(raw != 0)
    if dtype.bits >= 8:
        return torch.from_numpy(raw).view(dtype.torch)
    codes = unpack(raw, dtype.bits, count)
    if dtype.torch == torch.int8:
        half = np.uint8(1 << (dtype.bits - 1))
        return torch.from_numpy((codes ^ half).view(np.int8) - half.view(np.int8))
    return torch.from_numpy(codes)


def unpack(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Return codes of 1, 2, 3, 4 or 6 bits, packed from the lowest bits of each byte on."""
    period = math.lcm(bits, 8) // 8  # bytes after which the pattern repeats
    word = np.dtype(np.uint8 if period == 1 else np.uint32)
    padded = np.zeros(-(-len(raw) // period) * period, np.uint8)
    padded[: len(raw)] = raw
    words = np.zeros(len(padded) // period, word)
    for byte in range(period):
        words |= padded[byte::period].astype(word) << word.type(8 * byte)
    shifts = np.arange(0, 8 * period, bits, dtype=word)
    codes = (words[:, None] >> shifts) & word.type((1 << bits) - 1)
    return codes.reshape(-1)[:count].astype(np.uint8)
