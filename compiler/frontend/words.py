"""A Hugging Face directory's tokenizer: text -> token ids, with what the model expects around them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import MissingPackageError, ModelError
from qcompile.runtime.chat import ChatTemplate, Messages

NOW = datetime(2025, 1, 1)
"""What templates take for the present: the same data gives the same ids on any day."""


@dataclass(frozen=True)
class Words:
    """How a model reads text.

    Args:
        encode: Text -> ids, nothing around them; ``<|...|>`` and the like are the tokens they name.
        vocabulary: Ids are below it.
        beginning: Token that the model wants before each text, if any.
        ending: Token that ends a text, if any.
        template: For chats, if there is one.
        context: Tokens a sequence may have, if that is known.
    """

    encode: Callable[[str], list[int]]
    vocabulary: int
    beginning: int | None = None
    ending: int | None = None
    template: ChatTemplate | None = None
    context: int | None = None

    def encode_chat(self, messages: Messages) -> list[int]:
        """Return the ids of a conversation, as its template writes it.

        Raises:
            InputError: The template refuses it.
            ModelError: The model has none.
        """
        if self.template is None:
            raise ModelError("the model has no chat template")
        return self.encode(self.template.render(messages, answer=False, now=NOW))


def read_words(folder: Path) -> Words:
    """Read the tokenizer of a Hugging Face directory.

    Raises:
        MissingPackageError: tokenizers is not installed.
        ModelError: The directory has none in ``tokenizer.json``, or one that cannot be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingPackageError("tokenizers", "gguf") from error
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"{folder} has no tokenizer.json; save the tokenizer there with save_pretrained() of "
            "transformers"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises Exception itself
        raise ModelError(f"{file} cannot be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config, settings = _json(folder / "config.json"), _json(folder / "tokenizer_config.json")
    text = config.get("text_config", config)
    beginning, ending = (_content(settings.get(f"{kind}_token")) for kind in ("bos", "eos"))
    source = _template(folder, settings)
    return Words(
        encode=lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
        vocabulary=max(int(text.get("vocab_size", 0)), tokenizer.get_vocab_size()),
        beginning=_added_before(tokenizer),
        ending=tokenizer.token_to_id(ending) if ending else None,
        template=ChatTemplate(source, beginning, ending) if source else None,
        context=text.get("max_position_embeddings", text.get("n_positions")),
    )


def _added_before(tokenizer: Any) -> int | None:
    """Return the token that the tokenizer itself puts before a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    return int(whole[0]) if len(whole) > len(bare) and whole[0] != bare[0] else None


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    """Return the chat template: of its own file, or in the tokenizer's settings."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _content(token: Any) -> str:
    """Return a token's text: settings hold it bare or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds no object")
    return found
