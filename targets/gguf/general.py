"""The fields of a GGUF file that are the same in every architecture."""

from __future__ import annotations

from typing import Any

QUANTIZATION_VERSION = 2
"""Of ggml's formats; ``GGML_QNT_VERSION``."""


def general_fields(architecture: str, name: str, file_type: int) -> dict[str, Any]:
    """Return the fields that come first.

    Args:
        architecture: As llama.cpp calls it.
        name: Of the model, for people.
        file_type: Of the mix.
    """
    return {
        "general.architecture": architecture,
        "general.type": "model",
        "general.name": name,
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
