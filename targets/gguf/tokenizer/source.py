"""The files of a Hugging Face directory that say how text becomes token ids, read as data."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import ModelError

_PARTS = ("normalizer", "pre_tokenizer", "decoder", "post_processor")
SENTENCEPIECE_ONLY = (
    "{directory} has tokenizer.model and no tokenizer.json: SentencePiece's own file cannot be read without "
    "the package 'sentencepiece'; write tokenizer.json beside it, with "
    "AutoTokenizer.from_pretrained(DIRECTORY).save_pretrained(DIRECTORY) where that package is installed"
)


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in text before anything else is done with it.

    Args:
        id: Its id.
        text: Its text.
        special: Is it one that no text of a user should give.
        normalized: Is it looked for in the normalized text.
        exact: Is it found as it stands; otherwise white space around it, or the words beside it, matter.
    """

    id: int
    text: str
    special: bool
    normalized: bool
    exact: bool


@dataclass(frozen=True)
class TokenizerSource:
    """What the directory says.

    Args:
        directory: Where it was read.
        tokenizer: ``tokenizer.json``.
        settings: ``tokenizer_config.json``, over ``special_tokens_map.json``.
        config: ``config.json``.
        generation: ``generation_config.json``.
        added: The added tokens, by id.
        templates: Chat templates by name; the usual one is ``default``.
    """

    directory: Path
    tokenizer: dict[str, Any]
    settings: dict[str, Any]
    config: dict[str, Any]
    generation: dict[str, Any]
    added: dict[int, AddedToken]
    templates: dict[str, str]

    @property
    def model(self) -> dict[str, Any]:
        """The part of ``tokenizer.json`` that holds vocabulary and merges."""
        return dict(self.tokenizer["model"])


def read_source(directory: Path) -> TokenizerSource:
    """Read the tokenizer of a Hugging Face directory.

    Raises:
        ModelError: There is none, or a file of it is damaged.
    """
    tokenizer = _read_tokenizer(directory)
    settings = {
        **_read(directory / "special_tokens_map.json"),
        **_read(directory / "tokenizer_config.json"),
    }
    return TokenizerSource(
        directory=directory,
        tokenizer=tokenizer,
        settings=settings,
        config=_text_part(_read(directory / "config.json")),
        generation=_read(directory / "generation_config.json"),
        added=_added_tokens(tokenizer, settings),
        templates=_templates(directory, settings),
    )


def token_text(entry: object) -> str | None:
    """Return the text of a token as the settings hold it: a string, or an object with its flags."""
    if isinstance(entry, dict):
        entry = entry.get("content")
    return entry if isinstance(entry, str) else None


def _read_tokenizer(directory: Path) -> dict[str, Any]:
    tokenizer = _read(directory / "tokenizer.json")
    if not tokenizer:
        if (directory / "tokenizer.model").is_file():
            raise ModelError(SENTENCEPIECE_ONLY.format(directory=directory))
        raise ModelError(
            f"{directory} has no tokenizer.json, so text could not become token ids; write it with "
            "AutoTokenizer.from_pretrained(NAME).save_pretrained(DIRECTORY)"
        )
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ModelError(f"{directory / 'tokenizer.json'} holds no model with a vocabulary")
    wrong = [key for key in _PARTS if not isinstance(tokenizer.get(key), dict | None)]
    if not all(_is_token(entry) for entry in tokenizer.get("added_tokens") or []):
        wrong.append("added_tokens")
    if wrong:
        raise ModelError(
            f"{directory / 'tokenizer.json'} is not as the package 'tokenizers' writes it: "
            f"{', '.join(wrong)} cannot be read; save the tokenizer again with save_pretrained"
        )
    return tokenizer


def _is_token(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    return isinstance(entry.get("id"), int) and isinstance(entry.get("content"), str)


def _read(file: Path) -> dict[str, Any]:
    """Return a file's object; that of a missing file is empty."""
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read as JSON: {error}; copy it again") from error
    if not isinstance(data, dict):
        raise ModelError(f"{file} holds a {type(data).__name__}, not an object")
    return data


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    """Return a model's configuration, over it that of the text model inside one of several kinds of input."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _added_tokens(tokenizer: dict[str, Any], settings: dict[str, Any]) -> dict[int, AddedToken]:
    """Return the added tokens of ``tokenizer.json``, and those that only the settings name."""
    decoder = settings.get("added_tokens_decoder") or {}
    entries = [{**entry, "id": int(number)} for number, entry in decoder.items()]
    entries += tokenizer.get("added_tokens") or []
    tokens = (
        AddedToken(
            id=entry["id"],
            text=entry["content"],
            special=bool(entry.get("special")),
            normalized=bool(entry.get("normalized")),
            exact=not any(entry.get(flag) for flag in ("lstrip", "rstrip", "single_word")),
        )
        for entry in entries
    )
    return {token.id: token for token in tokens}


def _templates(directory: Path, settings: dict[str, Any]) -> dict[str, str]:
    """Return the chat templates; a file beside the settings goes before a template inside them."""
    inside = settings.get("chat_template") or _read(directory / "chat_template.json").get(
        "chat_template"
    )
    templates = _named(inside)
    if (file := directory / "chat_template.jinja").is_file():
        templates["default"] = file.read_text(encoding="utf-8")
    for file in sorted((directory / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    return templates


def _named(inside: object) -> dict[str, str]:
    if isinstance(inside, str):
        return {"default": inside}
    if isinstance(inside, dict):
        return dict(inside)
    if isinstance(inside, list):
        return {entry["name"]: entry["template"] for entry in inside}
    return {}
