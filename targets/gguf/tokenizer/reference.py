"""The source's tokenizer: what token ids should be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qcompile.compiler.ir.errors import MissingPackageError, ModelError
from qcompile.targets.gguf.tokenizer.source import TokenizerSource
from qcompile.targets.gguf.tokenizer.vocabulary import is_control

Chat = list[dict[str, str]]


def source_json(source: TokenizerSource, vocab_size: int) -> dict[str, Any]:
    """Return ``tokenizer.json`` as the model uses it.

    Tokens that the settings alone name are added, tokens past the last embedding are not, and tokens that
    look like marks of a chat count as special.
    """
    known = {entry["id"]: entry for entry in source.tokenizer.get("added_tokens") or []}
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    settings = source.settings.get("added_tokens_decoder") or {}
    entries = [
        {
            **plain,
            **settings.get(str(number), {}),
            **known.get(number, {}),
            "id": number,
            "special": is_control(token),
        }
        for number, token in sorted(source.added.items())
        if number < vocab_size
    ]
    return {**source.tokenizer, "added_tokens": entries, "padding": None, "truncation": None}


class Reference:
    """A tokenizer in Hugging Face's ``tokenizers``.

    Args:
        tokenizer: ``tokenizer.json``.

    Raises:
        MissingPackageError: The package is not installed.
        ModelError: It refuses the file.
    """

    def __init__(self, tokenizer: dict[str, Any]) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingPackageError("tokenizers", "gguf") from error
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(tokenizer))
        except Exception as error:  # the package raises plain Exception
            raise ModelError(f"tokenizers cannot read tokenizer.json: {error}") from error

    def encode_all(self, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
        """Return the ids of texts, nothing added; special tokens in them are plain text unless asked for."""
        self._tokenizer.encode_special_tokens = not parse_special
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in found]

    def decode_all(self, ids: Sequence[Sequence[int]], *, special: bool) -> list[str]:
        """Return the texts of sequences of ids, special tokens among them or not."""
        sequences = [list(one) for one in ids]
        texts: list[str] = self._tokenizer.decode_batch(sequences, skip_special_tokens=not special)
        return texts

    def added_around(self) -> tuple[list[int], list[int]]:
        """Return the ids that the post-processor puts before and after a text."""
        whole = self._tokenizer.encode("x").ids
        plain = self._tokenizer.encode("x", add_special_tokens=False).ids
        return _around(whole, plain)


class Transformers:
    """The directory's tokenizer as ``AutoTokenizer`` loads it: what is added to a text, and chats.

    Args:
        source: The directory.

    Raises:
        MissingPackageError: transformers or jinja2 is not installed.
        ModelError: transformers cannot load the directory's tokenizer.
    """

    def __init__(self, source: TokenizerSource) -> None:
        try:
            import jinja2
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingPackageError(error.name or "transformers", "gguf") from error
        self._template_error = jinja2.TemplateError
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                str(source.directory), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # whatever the files lead it to
            raise ModelError(
                f"transformers cannot load the tokenizer of {source.directory}: {error}"
            ) from error

    @property
    def class_name(self) -> str:
        """The class that transformers chose."""
        return type(self._tokenizer).__name__

    def special(self, name: str) -> int | None:
        """Return the id of ``bos``, ``eos`` or ``pad``."""
        number = getattr(self._tokenizer, f"{name}_token_id")
        return number if isinstance(number, int) else None

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, nothing added."""
        found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    def added_around(self) -> tuple[list[int], list[int]]:
        """Return the ids that are put before and after a text."""
        return _around(
            self._tokenizer.encode("x"), self._tokenizer.encode("x", add_special_tokens=False)
        )

    def render(self, chat: Chat, template: str, *, prompt: bool) -> str | None:
        """Return a chat as the template writes it; None where the template refuses it."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        except (self._template_error, TypeError, ValueError):
            return None
        return text


def _around(whole: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """Return what stands before and after ``plain`` in ``whole``."""
    extra = len(whole) - len(plain)
    start = next((i for i in range(extra + 1) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]
