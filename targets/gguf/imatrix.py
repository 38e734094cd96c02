"""llama.cpp's importance matrices: the mean square of each input of each weight matrix.

``tools/imatrix`` of llama.cpp writes them in two layouts (FORMATS A.1.7): GGUF, with sums and the number
of rows that were summed, and the older ``.dat``, with means times the number of chunks. Both are read;
GGUF is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.errors import CalibrationError
from qcompile.targets.gguf.container import StoredTensor, write_gguf
from qcompile.targets.gguf.fields import Typed
from qcompile.targets.gguf.imatrix_layouts import (
    CHUNK_SIZE,
    COUNTS,
    SUMS,
    Entry,
    damaged,
    parse,
)

Array = NDArray[np.float32]
UNVISITED = 1.0
"""Mean square of an expert that saw no data: llama.cpp weights all of its inputs alike."""
_SHOWN = 8


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix.

    Args:
        values: By the weight's name in GGUF: ``E[x^2]`` of its inputs, float32 ``[n_mat, n_in]``, finite
            and not negative; ``n_mat`` is the number of experts, else 1. The older layout does not say
            where an expert ends: there ``n_mat`` is 1, and ``weights`` divides.
        counts: Rows of inputs that each matrix saw, float32 ``[n_mat]``.
        chunk_size: Tokens of a sequence.
        chunk_count: Sequences.
        datasets: Where the text came from.
    """

    values: Mapping[str, Array]
    counts: Mapping[str, Array]
    chunk_size: int = CHUNK_SIZE
    chunk_count: int = 0
    datasets: tuple[str, ...] = ()

    def weights(self, name: str, n_in: int) -> Array:
        """Return the importance of a weight's inputs, ``[n_mat, n_in]``."""
        return self.values[name].reshape(-1, n_in)

    @property
    def unvisited(self) -> dict[str, int]:
        """Matrices that saw no data, how many of each weight; their values are ``UNVISITED``."""
        empty = {name: int((count == 0).sum()) for name, count in self.counts.items()}
        return {name: count for name, count in empty.items() if count}


def read_imatrix(file: Path) -> Imatrix:
    """Read a file of either layout.

    Raises:
        CalibrationError: It is missing, truncated, no imatrix, or holds what no mean square can be.
    """
    stored = parse(file)
    values, counts = {}, {}
    for name in sorted(stored.entries):
        entry = stored.entries[name]
        counts[name] = entry.counts
        with np.errstate(over="ignore", invalid="ignore"):
            values[name] = _means(entry)
    bad = [n for n, v in values.items() if not (np.isfinite(v) & (v >= 0)).all()]
    bad += [n for n, c in counts.items() if not (np.isfinite(c) & (c >= 0)).all()]
    if bad:
        raise damaged(
            file, f"values that are negative or not finite for {_listed(sorted(set(bad)))}"
        )
    return Imatrix(values, counts, stored.chunk_size, stored.chunk_count, stored.datasets)


def check_fits(imatrix: Imatrix, inputs: Mapping[str, int], source: str = "the imatrix") -> None:
    """Refuse an imatrix of another model.

    Args:
        imatrix: To be used.
        inputs: Width of the input of each weight that needs it, by its name in GGUF.
        source: For the message.

    Raises:
        CalibrationError: Weights are missing in it or have another width; names them all.
    """
    missing = [name for name in inputs if name not in imatrix.values]
    wrong = [
        f"{name} ({imatrix.values[name].shape[1]}, not {width})"
        for name, width in inputs.items()
        if name in imatrix.values and not _fits(imatrix, name, width)
    ]
    parts = []
    if missing:
        parts.append(f"it has nothing for {', '.join(missing)}")
    if wrong:
        parts.append(f"other widths: {', '.join(wrong)}")
    if parts:
        raise CalibrationError(
            f"{source} is of another model: {'; '.join(parts)}; make one from this model "
            "(qcompile imatrix), or give --calibrate instead"
        )


def write_imatrix(file: Path, imatrix: Imatrix) -> None:
    """Write the GGUF layout; the bytes depend on the content alone."""
    tensors = []
    for name in sorted(imatrix.values):
        value, count = imatrix.values[name], imatrix.counts[name][:, None]
        sums = value.astype(np.float64) * count
        tensors += [_stored(name + SUMS, sums), _stored(name + COUNTS, count)]
    fields = {
        "general.type": "imatrix",
        "imatrix.datasets": Typed("str", imatrix.datasets),
        "imatrix.chunk_count": imatrix.chunk_count,
        "imatrix.chunk_size": imatrix.chunk_size,
    }
    write_gguf(file, fields, tensors)


def _stored(name: str, value: NDArray[Any]) -> StoredTensor:
    """Return a tensor of the file; one row has one axis, as llama-imatrix writes it."""
    rows = torch.from_numpy(value.astype(np.float32))
    shape = rows.shape if len(rows) > 1 else rows.shape[1:]
    return StoredTensor(name, tuple(shape), "F32", lambda: BLOCK_FORMATS["F32"].encode(rows))


def _means(entry: Entry) -> Array:
    counts = entry.counts[:, None].astype(np.float64)
    means = np.where(counts > 0, entry.sums / np.where(counts > 0, counts, 1.0), UNVISITED)
    found: Array = means.astype(np.float32)
    return found


def _fits(imatrix: Imatrix, name: str, width: int) -> bool:
    rows, found = imatrix.values[name].shape
    if "_exps." in name and rows == 1:
        return bool(found % width == 0)
    return bool(found == width)


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
