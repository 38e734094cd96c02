"""The GGUF container: a header, typed fields, a table of tensors, and their bytes at aligned offsets.

Source: the GGUF specification (ggml, ``docs/gguf.md``), version 3, little-endian. ``gguf.GGUFWriter``
holds what it writes as arrays; here a tensor exists only while it is written.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.fields import packed, text

ALIGNMENT = 32
VERSION = 3
MOST_AXES = 4

Data = Tensor | Iterator[Tensor]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file holds it.

    Args:
        name: Its name in the file.
        shape: As PyTorch has it, ``[..., out, in]``.
        type_name: Of ``BLOCK_FORMATS``.
        data: Called once, when its turn has come: uint8 ``[rows, bytes a row]``, or an iterator of such
            runs of rows, in order.
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    data: Callable[[], Data]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return BLOCK_FORMATS[self.type_name].storage_bytes(self.shape)


def predicted_bytes(fields: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> int:
    """Return the exact size of the file that ``write_gguf`` would write; no data is touched."""
    return len(header(fields, tensors)) + sum(aligned(tensor.nbytes) for tensor in tensors)


def write_gguf(
    file: Path,
    fields: Mapping[str, Any],
    tensors: Sequence[StoredTensor],
    on_tensor: Callable[[StoredTensor], None] = lambda tensor: None,
) -> None:
    """Write a file, one tensor after the other; the same arguments give the same bytes.

    Args:
        file: To write; what is there is replaced.
        fields: Values by key, in file order; ``fields.py`` says which Python types are which of GGUF's.
        tensors: In file order.
        on_tensor: Told of each tensor that is written.

    Raises:
        ValueError: A name twice, a value that no type of GGUF holds, or data that is not what the table
            of tensors says.
    """
    head = header(fields, tensors)
    with file.open("wb") as stream:
        stream.write(head)
        for tensor in tensors:
            _write_data(stream, tensor)
            on_tensor(tensor)


def header(fields: Mapping[str, Any], tensors: Sequence[StoredTensor]) -> bytes:
    """Return all that comes before the first tensor's bytes."""
    _check(tensors)
    parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(tensors), len(fields))]
    parts += [text(key) + packed(key, value) for key, value in fields.items()]
    offset = 0
    for tensor in tensors:
        parts.append(_row_of_table(tensor, offset))
        offset += aligned(tensor.nbytes)
    head = b"".join(parts)
    return head.ljust(aligned(len(head)), b"\0")


def _check(tensors: Sequence[StoredTensor]) -> None:
    names = Counter(tensor.name for tensor in tensors)
    twice = sorted(name for name, count in names.items() if count > 1)
    deep = [tensor.name for tensor in tensors if not 1 <= len(tensor.shape) <= MOST_AXES]
    if twice or deep:
        raise ValueError(f"tensors named twice: {twice}; without 1 to {MOST_AXES} axes: {deep}")


def _row_of_table(tensor: StoredTensor, offset: int) -> bytes:
    axes = len(tensor.shape)
    numbers = (axes, *reversed(tensor.shape), BLOCK_FORMATS[tensor.type_name].type_id, offset)
    return text(tensor.name) + struct.pack(f"<I{axes}QIQ", *numbers)


def _write_data(stream: IO[bytes], tensor: StoredTensor) -> None:
    data = tensor.data()
    written = 0
    for rows in (data,) if isinstance(data, Tensor) else data:
        if rows.dtype != torch.uint8:
            raise ValueError(
                f"{tensor.name}: a file holds uint8, not {rows.dtype}: encode the values"
            )
        stream.write(rows.contiguous().numpy().data)
        written += rows.numel()
    if written != tensor.nbytes:
        raise ValueError(
            f"{tensor.name}: {list(tensor.shape)} in {tensor.type_name} is {tensor.nbytes} bytes, "
            f"and {written} were given"
        )
    stream.write(bytes(aligned(written) - written))


def aligned(size: int) -> int:
    """Return where the next tensor begins after so many bytes."""
    return -(-size // ALIGNMENT) * ALIGNMENT
