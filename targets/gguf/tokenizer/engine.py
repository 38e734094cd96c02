"""The tokenizer of a GGUF file as llama.cpp runs it, through llama-cpp-python's plain C calls."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcompile.compiler.ir.errors import ModelError
from qcompile.runtime.llama.library import library, listen, reason


class Vocabulary:
    """A GGUF file's tokenizer in llama.cpp; use it as a context manager.

    Args:
        file: A GGUF file; its weights are not read.

    Raises:
        MissingPackageError: llama-cpp-python is not installed.
        ModelError: llama.cpp refuses the file; its own words are in the message.
    """

    def __init__(self, file: Path) -> None:
        self._api = library()
        listen()
        parameters = self._api.llama_model_default_params()
        parameters.vocab_only = True
        self._model = self._api.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {file}: {reason()}")
        self._vocab = self._api.llama_model_get_vocab(self._model)
        self._ids = (ctypes.c_int32 * 4096)()
        self._text = ctypes.create_string_buffer(1 << 16)

    def __enter__(self) -> Vocabulary:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.llama_model_free(self._model)

    def __len__(self) -> int:
        return int(self._api.llama_vocab_n_tokens(self._vocab))

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Return the ids of a text.

        Args:
            text: Any text.
            add_special: Are BOS and EOS added, as the file says.
            parse_special: Is the text of a control token that token.
        """
        data = text.encode()
        if len(self._ids) < len(data) + 16:
            self._ids = (ctypes.c_int32 * (2 * len(data) + 16))()
        count = self._api.llama_tokenize(
            self._vocab, data, len(data), self._ids, len(self._ids), add_special, parse_special
        )
        if count < 0:
            raise ModelError(f"llama.cpp needs {-count} tokens for a text of {len(data)} bytes")
        return list(self._ids[:count])

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """Return what a token prints; nothing for a control token unless ``special``."""
        size = self._api.llama_token_to_piece(
            self._vocab, token, self._text, len(self._text), 0, special
        )
        return self._text.raw[:size] if size > 0 else b""

    def decode(self, ids: Sequence[int], *, special: bool = True) -> bytes:
        """Return what a sequence of tokens prints, token after token, as generation prints it."""
        return b"".join(self.piece(token, special=special) for token in ids)

    def special(self, name: str) -> int | None:
        """Return the id of ``bos``, ``eos``, ``eot`` or ``pad``; None where there is none."""
        number = int(getattr(self._api, f"llama_vocab_{name}")(self._vocab))
        return number if number >= 0 else None

    def stops(self, token: int) -> bool:
        """Does a token end an answer."""
        return bool(self._api.llama_vocab_is_eog(self._vocab, token))

    def template(self, name: str | None = None) -> str | None:
        """Return a chat template of the file; the usual one without a name."""
        data = self._api.llama_model_chat_template(self._model, name.encode() if name else None)
        return None if data is None else data.decode()

    def builtin_chat(self, messages: Sequence[Mapping[str, str]], *, prompt: bool) -> str | None:
        """Return a chat as llama.cpp's own renderer writes it; None where it knows no such template.

        It does not run templates: it takes the file's template for one of a list that it has in C++.
        """
        template = self.template()
        if template is None:
            return None
        chat = (self._api.llama_chat_message * len(messages))(
            *((one["role"].encode(), one["content"].encode()) for one in messages)
        )
        buffer = ctypes.create_string_buffer(1 << 16)
        size = self._api.llama_chat_apply_template(
            template.encode(), chat, len(messages), prompt, buffer, len(buffer)
        )
        return buffer.raw[:size].decode() if 0 <= size < len(buffer) else None
