"""llama.cpp through the low-level functions of llama-cpp-python."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import llama_cpp as low

_SILENT = low.llama_log_callback(lambda level, text, data: None)


def start() -> None:
    """Start the library, without its log."""
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


def logits(file: Path, tokens: Sequence[int], context: int = 0) -> npt.NDArray[np.float32]:
    """Return the logits of every token, with float32 keys and values and no flash attention.

    Args:
        file: A GGUF file.
        tokens: The text.
        context: Positions; 0 for just enough.

    Returns:
        ``[tokens, vocabulary]``.
    """
    start()
    settings = low.llama_model_default_params()
    settings.n_gpu_layers = 0
    model = low.llama_model_load_from_file(str(file).encode(), settings)
    if not model:
        raise RuntimeError(f"llama.cpp does not load {file}")
    count = len(tokens)
    options = low.llama_context_default_params()
    options.n_ctx = context or count
    options.n_batch = options.n_ubatch = count
    options.n_threads = options.n_threads_batch = 1
    options.flash_attn_type = low.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.type_k = options.type_v = 0
    made = low.llama_init_from_model(model, options)
    try:
        return _run(made, tokens, low.llama_vocab_n_tokens(low.llama_model_get_vocab(model)))
    finally:
        low.llama_free(made)
        low.llama_model_free(model)


def _run(
    context: low.llama_context_p, tokens: Sequence[int], vocabulary: int
) -> npt.NDArray[np.float32]:
    count = len(tokens)
    batch = low.llama_batch_init(count, 0, 1)
    batch.n_tokens = count
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
    status = low.llama_decode(context, batch)
    low.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status}")
    values = np.ctypeslib.as_array(low.llama_get_logits(context), (count, vocabulary))
    return values.copy()


def quantize(
    source: Path,
    file: Path,
    file_type: int,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> None:
    """Run llama-quantize's function on a file.

    Args:
        source: In f32.
        file: To write.
        file_type: ``general.file_type`` of the mix.
        importance: An imatrix: a weight an input, by name of the tensor.
    """
    start()
    options = _quantize_options(file_type)
    rows = (low.llama_model_imatrix_data * (len(importance or {}) + 1))()
    for row, (name, values) in zip(rows, (importance or {}).items(), strict=False):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance is not None:
        options.imatrix = rows
    status = low.llama_model_quantize(str(source).encode(), str(file).encode(), options)
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status} for {source.name}")


def quantized_types(
    source: Path, file_type: int, importance: bool, overrides: Sequence[tuple[str, int]] = ()
) -> tuple[dict[str, str], bool]:
    """Return what llama-quantize would make of each tensor, from the log of a dry run.

    Args:
        source: In f32; its tensors' data is not read.
        file_type: ``general.file_type`` of the mix.
        importance: Whether it has an imatrix.
        overrides: Expression and number of a type.

    Returns:
        Names of types by names of tensors, and whether an imatrix would be demanded.
    """
    start()
    options = _quantize_options(file_type)
    options.dry_run = True
    one = np.ones(1, np.float32)
    rows = (low.llama_model_imatrix_data * 2)()
    rows[0].name, rows[0].size = b"any", 1
    rows[0].data = one.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if importance:
        options.imatrix = rows
    forced = (low.llama_model_tensor_override * (len(overrides) + 1))()
    for entry, (pattern, kind) in zip(forced, overrides, strict=False):
        entry.pattern, entry.type = pattern.encode(), kind
    if overrides:
        options.tt_overrides = forced
    log: list[bytes] = []
    listen = low.llama_log_callback(lambda level, text, data: log.append(text))
    low.llama_log_set(listen, ctypes.c_void_p(0))
    try:
        status = low.llama_model_quantize(str(source).encode(), b"unused", options)
    finally:
        start()
    text = b"".join(log).decode()
    if status:
        raise RuntimeError(f"llama_model_quantize returned {status}: {text[-2000:]}")
    return _types_in(text), "will require an imatrix" in text


def _quantize_options(file_type: int) -> low.llama_model_quantize_params:
    options = low.llama_model_quantize_default_params()
    options.nthread = 1
    options.ftype = file_type
    return options


def _types_in(log: str) -> dict[str, str]:
    rows = re.findall(r"^\[ *\d+/ *\d+\] +(\S+) +- .* type = +(\S+), (.*)$", log, re.MULTILINE)
    types = {}
    for name, before, rest in rows:
        changed = re.search(r"-> .*\((\w+)\)$", rest)
        types[name] = (changed[1] if changed else before).upper()
    return types
