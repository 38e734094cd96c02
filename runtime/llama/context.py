"""A context: what a model remembers of the tokens it was given, and the logits that follow them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError
from qcompile.runtime.llama.library import library, listen, reason
from qcompile.runtime.llama.model import Model

BATCH = 512
"""Tokens that are computed at once; llama.cpp's own default."""
_CACHES = {"f32": "GGML_TYPE_F32", "f16": "GGML_TYPE_F16", "q8_0": "GGML_TYPE_Q8_0"}
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Options:
    """How llama.cpp computes; part of what was verified, so the manifest names them.

    Args:
        kv_type: Of the remembered keys and values: ``f16`` (llama.cpp's default), ``f32``, or ``q8_0``, which
            needs the fused kernel.
        flash_attention: Use the fused attention kernel.
        repack: See ``Model``.
    """

    kv_type: str = "f16"
    flash_attention: bool = False
    repack: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Read the manifest's.

        Raises:
            BundleError: Some are unknown or have wrong values.
        """
        known = {f.name: f for f in fields(cls)}
        if odd := sorted(given.keys() - known):
            raise BundleError(f"unknown engine options: {', '.join(odd)}; update qcompile")
        found = cls(**given)
        wrong = [n for n in ("flash_attention", "repack") if type(getattr(found, n)) is not bool]
        if found.kv_type not in _CACHES:
            wrong.append("kv_type")
        if found.kv_type == "q8_0" and found.flash_attention is False:
            wrong += ["kv_type", "flash_attention"]
        if wrong:
            values = ", ".join(f"{n} is {getattr(found, n)!r}" for n in wrong)
            raise BundleError(
                f"wrong engine options: {values}; kv_type is {' or '.join(_CACHES)}, the others are "
                "true or false, and q8_0 needs flash_attention"
            )
        return found


class Context:
    """Room for sequences of tokens.

    Args:
        model: Whose.
        options: How it computes.
        length: Tokens a sequence.
        sequences: How many there are at once.
        threads: Of the engine.
        batch: Tokens that are computed at once.

    Raises:
        BundleError: llama.cpp makes none, as when memory is short.
    """

    def __init__(
        self,
        model: Model,
        options: Options,
        length: int,
        *,
        sequences: int = 1,
        threads: int = 1,
        batch: int = BATCH,
    ) -> None:
        functions = library()
        cache = getattr(functions, _CACHES[options.kv_type])
        flash = "ENABLED" if options.flash_attention else "DISABLED"
        settings = functions.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = _padded(length) * sequences, sequences
        settings.n_batch = settings.n_ubatch = batch
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = getattr(functions, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        settings.type_k = settings.type_v = cache
        settings.offload_kqv = settings.op_offload = False
        listen()
        handle = functions.llama_init_from_model(model.handle, settings)
        if not handle:
            raise BundleError(f"llama.cpp {model.version} makes no context: {reason()}")
        self._close = weakref.finalize(self, functions.llama_free, handle)
        self._handle, self._functions = handle, functions
        self._model = model  # which must live as long
        self.length, self.sequences, self.batch = _padded(length), sequences, batch

    def clear(self) -> None:
        """Forget all."""
        memory = self._functions.llama_get_memory(self._handle)
        self._functions.llama_memory_clear(memory, True)

    def decode(self, ids: NDArray[Any], start: int, first: int) -> Logits:
        """Add tokens to each sequence.

        Args:
            ids: ``[sequences, tokens]``; any number of tokens.
            start: Position of the first.
            first: Give logits from this position on.

        Returns:
            ``[sequences, positions from first on, vocabulary]``.
        """
        count, length = ids.shape
        step = max(1, self.batch // count)
        parts = [
            self._some(ids[:, at : at + step], start + at, first) for at in range(0, length, step)
        ]
        return np.concatenate(parts, axis=1)

    def _some(self, ids: NDArray[Any], start: int, first: int) -> Logits:
        """Decode so many tokens as fit a batch."""
        count, length = ids.shape
        wanted = max(0, start + length - max(first, start))
        batch = self._functions.llama_batch_init(ids.size, 0, 1)
        try:
            self._fill(batch, ids, start, first)
            listen()
            code = self._functions.llama_decode(self._handle, batch)
        finally:
            self._functions.llama_batch_free(batch)
        if code:
            raise BundleError(f"llama.cpp fails to compute (code {code}): {reason()}")
        shape = (count, wanted, self._model.vocabulary)
        if not wanted:
            return np.empty(shape, np.float32)
        found = self._functions.llama_get_logits(self._handle)
        if not found:
            raise BundleError("llama.cpp gives no logits for it: it is no model that writes text")
        return np.ctypeslib.as_array(found, shape).copy()

    @staticmethod
    def _fill(batch: Any, ids: NDArray[Any], start: int, first: int) -> None:
        _, length = ids.shape
        batch.n_tokens = ids.size
        for index, token in enumerate(ids.ravel().tolist()):
            sequence, offset = divmod(index, length)
            batch.token[index] = token
            batch.pos[index] = start + offset
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = start + offset >= first


def _padded(length: int) -> int:
    """Return the room that llama.cpp gives a sequence: full multiples of 256 tokens."""
    return -(-length // 256) * 256
