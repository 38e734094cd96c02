"""The families of language models that can be stored as GGUF.

Names of tensors, transforms and fields are those of llama.cpp's converter (its ``conversion`` package;
FORMATS A.1.6), what is refused is what its model code (``src/models``) would not compute. How to add one:
``docs/add-a-language-model.md``.
"""

from __future__ import annotations

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.gguf.architectures.base import Architecture, Config
from qcompile.targets.gguf.architectures.gemma import GEMMA2, GEMMA3
from qcompile.targets.gguf.architectures.gpt2 import GPT2
from qcompile.targets.gguf.architectures.llama import LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from qcompile.targets.gguf.architectures.phi3 import PHI3
from qcompile.targets.gguf.architectures.qwen import QWEN2, QWEN3, QWEN3_MOE

__all__ = ["ARCHITECTURES", "Architecture", "find_architecture"]

ARCHITECTURES: tuple[Architecture, ...] = (
    *(LLAMA, MISTRAL, MIXTRAL, SMOLLM3, QWEN2, QWEN3, QWEN3_MOE),
    *(GEMMA2, GEMMA3, PHI3, GPT2),
)


def find_architecture(config: Config) -> Architecture:
    """Return the family of a checkpoint.

    Args:
        config: Its ``config.json``: ``architectures`` says, or else ``model_type``.

    Raises:
        UnsupportedError: It is not known; lists those that are.
    """
    named = config.get("architectures")
    classes = named if isinstance(named, list) else []
    kind = config.get("model_type")
    for architecture in ARCHITECTURES:
        if classes[0] in architecture.classes if classes else kind in architecture.model_types:
            return architecture
    what = f"{classes[0]!r}" if classes else f"of type {kind!r}"
    known = ", ".join(name for found in ARCHITECTURES for name in found.classes)
    raise UnsupportedError(f"no rules to store a model {what} as GGUF; possible: {known}")
