"""llama-quantize's own function, in a process of its own.

    python benchmarks/peers_gguf.py FLOAT.gguf IMATRIX.gguf FILE_TYPE OUTPUT.gguf

FILE_TYPE is the number of a mix. The imatrix is given as llama-quantize gives it: a pointer a tensor.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as low

SUMS, COUNTS = ".in_sum2", ".counts"


def read_imatrix(file: Path) -> dict[str, np.ndarray]:
    """Return the mean squares of each matrix, by its name."""
    from gguf import GGUFReader

    found = {tensor.name: tensor.data for tensor in GGUFReader(file).tensors}
    names = [name.removesuffix(SUMS) for name in found if name.endswith(SUMS)]
    means = {
        n: found[n + SUMS].reshape(-1)
        / found[n + COUNTS].reshape(-1).repeat(found[n + SUMS].size // found[n + COUNTS].size)
        for n in names
    }
    return {name: np.ascontiguousarray(value, np.float32) for name, value in means.items()}


def quantize(source: Path, imatrix: Path, file_type: int, output: Path) -> int:
    """Run it with its defaults and the imatrix; return its status."""
    importance = read_imatrix(imatrix)
    low.llama_backend_init()
    options = low.llama_model_quantize_default_params()
    options.ftype = file_type
    rows = (low.llama_model_imatrix_data * (len(importance) + 1))()
    for row, (name, values) in zip(rows, importance.items(), strict=False):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    options.imatrix = rows
    return int(low.llama_model_quantize(str(source).encode(), str(output).encode(), options))


if __name__ == "__main__":
    sys.exit(quantize(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
