"""A GGUF file as llama.cpp itself decodes it: the same model with all tensors in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import PassError
from qcompile.runtime.llama.library import library, listen, reason

ALL_F32 = 0
"""``LLAMA_FTYPE_ALL_F32``."""


def write_twin(artifact: Path, twin: Path) -> None:
    """Let llama.cpp decode a file into another.

    Raises:
        PassError: It refuses the file.
    """
    functions = library()
    options = functions.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = ALL_F32, True, 1
    listen()
    if functions.llama_model_quantize(str(artifact).encode(), str(twin).encode(), options):
        raise PassError(f"llama.cpp does not decode {artifact.name}: {reason()}")


def read_twin(twin: Path) -> Mapping[str, Any]:
    """Return the numbers of each tensor, float32, by name; they stay in the file until they are read."""
    import gguf

    found = gguf.GGUFReader(twin).tensors
    return {
        tensor.name: tensor.data.reshape([int(size) for size in reversed(tensor.shape)])
        for tensor in found
    }
