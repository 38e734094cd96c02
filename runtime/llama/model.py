"""A GGUF model: its weights, its words, its metadata."""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError, InputError
from qcompile.runtime.llama.library import library, listen, reason, version

MAGIC = b"GGUF"
_HEADER = struct.Struct("<4sIQQ")
"""Magic, version, number of tensors, number of metadata fields."""


class Model:
    """A GGUF file in memory, on the CPU.

    Args:
        file: The model.
        repack: Let llama.cpp rearrange quantized weights for this CPU while it loads. Prompts are
            read faster; on CPUs with AMX some versions crash.
        empty: Read no weights and allocate nothing: only sizes are asked for.

    Raises:
        BundleError: It is no model that llama.cpp runs; says why.
        MissingPackageError: llama-cpp-python is not installed.
    """

    def __init__(self, file: Path, *, repack: bool = False, empty: bool = False) -> None:
        functions = library()
        _check_header(file)
        settings = functions.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = repack
        if empty:
            _allocate_nothing(settings)
        listen()
        handle = functions.llama_model_load_from_file(os.fsencode(file), settings)
        if not handle:
            raise BundleError(f"llama.cpp {version()} refuses it: {reason()}")
        self._functions = functions
        self.handle = handle
        self.version = version()
        self._close = weakref.finalize(self, functions.llama_model_free, handle)
        self._words = functions.llama_model_get_vocab(handle)
        self.vocabulary = int(functions.llama_vocab_n_tokens(self._words))
        self.context = int(functions.llama_model_n_ctx_train(handle))

    @property
    def beginning(self) -> int | None:
        """The token that begins a text, if the model wants one."""
        if not self._functions.llama_vocab_get_add_bos(self._words):
            return None
        return _token(self._functions.llama_vocab_bos(self._words))

    @property
    def ending(self) -> int | None:
        """The token that ends a text (EOS), if there is one."""
        return _token(self._functions.llama_vocab_eos(self._words))

    def word(self, kind: str) -> str:
        """Return the text of the token ``bos`` or ``eos``; nothing where there is none."""
        token = int(getattr(self._functions, f"llama_vocab_{kind}")(self._words))
        return "" if token < 0 else self.piece(token, special=True).decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Return whether generation ends at a token: EOS, EOT and their like."""
        return bool(self._functions.llama_vocab_is_eog(self._words, token))

    def tokenize(self, text: str, *, special: bool, begin: bool = True) -> list[int]:
        """Return a text's tokens.

        Args:
            text: Any.
            special: Read ``<|...|>`` and the like as the tokens that they name.
            begin: Put the beginning of a text before it, if the model wants one.

        Raises:
            InputError: The text cannot be written in UTF-8.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is no Unicode text: {error}") from error
        room = len(data) + 8
        tokens = (ctypes.c_int32 * room)()
        found = self._functions.llama_tokenize(
            self._words, data, len(data), tokens, room, begin, special
        )
        if found < 0:
            raise InputError(f"the text of {len(data):,} bytes cannot be tokenized")
        return list(tokens[:found])

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """Return a token's bytes, which may be a part of a character.

        Args:
            token: Its id.
            special: Also write control tokens, which else are nothing.
        """
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            size = self._functions.llama_token_to_piece(
                self._words, token, buffer, room, 0, special
            )
            if size >= 0:
                return buffer.raw[:size]
            room = -size

    def metadata(self, key: str) -> str | None:
        """Return a metadata field as text."""
        size = self._functions.llama_model_meta_val_str(self.handle, key.encode(), None, 0)
        if size < 0:
            return None
        buffer = ctypes.create_string_buffer(size + 1)
        self._functions.llama_model_meta_val_str(self.handle, key.encode(), buffer, size + 1)
        return buffer.value.decode("utf-8", "replace")

    def check(self, ids: NDArray[Any] | Sequence[int]) -> None:
        """Refuse what the model cannot take: llama.cpp itself would only say that it failed.

        Raises:
            InputError: Ids are outside of the vocabulary, or more than the context holds.
        """
        values = np.asarray(ids)
        if values.size and (values.min() < 0 or values.max() >= self.vocabulary):
            raise InputError(
                f"token ids must be 0 to {self.vocabulary - 1}, these are {values.min()} to "
                f"{values.max()}"
            )
        if values.shape[-1] > self.context:
            raise InputError(
                f"the sequence has {values.shape[-1]} tokens, and the model's context is "
                f"{self.context}; give at most so many"
            )


def _check_header(file: Path) -> None:
    """Refuse what is no GGUF file without reading it.

    Raises:
        BundleError: It is missing or another thing.
    """
    try:
        with file.open("rb") as stream:
            head = stream.read(_HEADER.size)
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    if len(head) < _HEADER.size or not head.startswith(MAGIC):
        raise BundleError(f"it is no GGUF file: it begins with {head[:4]!r}, not {MAGIC!r}")


def _allocate_nothing(settings: Any) -> None:
    """Let llama.cpp say what it would allocate.

    Raises:
        BundleError: This version cannot.
    """
    known = {name for name, *_ in settings._fields_}
    if not {"no_alloc", "load_mode"} <= known:
        raise BundleError(
            f"llama-cpp-python {version()} does not say what a model takes: install a newer one"
        )
    settings.no_alloc, settings.load_mode = True, 0  # LLAMA_LOAD_MODE_NONE: nothing is mapped


def _token(found: int) -> int | None:
    """Return a token; llama.cpp says -1 for none."""
    return None if found < 0 else int(found)
