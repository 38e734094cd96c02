"""What the bundle writes into vectors/*.npz is what the Swift package reads."""

from __future__ import annotations

import ast
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime.vectors import save_arrays
from qcompile.targets.coreml import swift

READER = Path(swift.__file__).parent / "swift_templates" / "Vectors.swift"


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64", "int8", "int32"])
def test_entries_and_dtypes(tmp_path: Path, dtype: str) -> None:
    """APPNOTE.TXT, 4.3.7: stored, sizes in the local header; uint8 is that of images."""
    save_arrays(tmp_path / "inputs.npz", {"x": np.zeros((1, 2), dtype)})
    data = (tmp_path / "inputs.npz").read_bytes()
    flags, method, _, _, _, packed, size, name, extra = struct.unpack("<HHHHIIIHH", data[6:30])
    assert flags == method == extra == 0
    assert packed == size
    entry = data[30 + name : 30 + name + size]
    header = re.search(rb"\{.*?\}", entry)
    assert header is not None
    description = ast.literal_eval(header[0].decode())
    assert description["fortran_order"] is False
    read = f'case "{description["descr"]}": return read({np.dtype(dtype).itemsize})'
    assert read in READER.read_text(encoding="utf-8")
