"""A checkpoint as bfloat16 GGUF: the bytes of ``-p bf16``, written one tensor at a time and not verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.container import StoredTensor, write_gguf
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized
from qcompile.targets.options import NO_BLOCK_OPTIONS


def write_float(model: Path, file: Path) -> None:
    """Write a Hugging Face directory's weights and tokenizer to a file for llama-quantize."""
    source = load(str(model))
    assert source.checkpoint is not None
    layout = Layout.of(source.checkpoint, "bf16", NO_BLOCK_OPTIONS)
    read = source.graph.weights.__getitem__
    write_gguf(file, layout.fields(), [_stored(tensor, read) for tensor in layout.tensors])


def _stored(tensor: GgufTensor, read: Callable[[str], Tensor]) -> StoredTensor:
    floats = never_quantized(tensor.name, tensor.shape) or not tensor.sources
    kind = BLOCK_FORMATS["F32" if floats else "BF16"]

    def data() -> Tensor:
        if floats:
            numbers = tensor.numbers(read)
            return kind.encode(numbers.reshape(-1, numbers.shape[-1]))
        return tensor.rows([kind.encode(tensor.matrix(read(name))) for name in tensor.sources])

    return StoredTensor(tensor.name, tensor.shape, kind.name, data)
