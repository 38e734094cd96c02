"""Recognizes what ``tokenizer.json`` does, and how llama.cpp does the same.

llama.cpp has two machines for it. ``gpt2``: text is cut into words by patterns, and the bytes of a word are
merged by the rank of pairs. ``llama``: spaces become underlines, and the characters of the whole text are
merged by the score of what they become. Sources: llama.cpp, ``src/llama-vocab.cpp``; FORMATS A.1.6.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.gguf.tokenizer.parts import (
    UNDERLINE,
    Part,
    describe,
    parts_of,
    plain_pattern,
    prepends_underline,
    replaces_spaces,
    split_step,
    splits_nothing,
)
from qcompile.targets.gguf.tokenizer.source import TokenizerSource

TABLE = Path(__file__).with_name("pre_tokenizers.toml")
KNOWN_PARTS = {
    "model": "BPE without dropout, subword prefix and word suffix",
    "normalizer": f"none, NFC, Prepend({UNDERLINE}), Replace(' ', {UNDERLINE})",
    "pre_tokenizer": f"none, Split, Digits, contiguous Punctuation, ByteLevel, Metaspace({UNDERLINE})",
    "decoder": "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace",
    "post_processor": "none, ByteLevel, TemplateProcessing with one token before or after the text",
}
_DECODERS = ("ByteLevel", "Replace", "ByteFallback", "Fuse", "Strip", "Metaspace")


@dataclass(frozen=True)
class PreTokenizer:
    """A row of the table.

    Args:
        name: llama.cpp's name.
        steps: Patterns, in order, as ``split_step`` writes them.
        ignore_merges: Is a word that is a token taken without its merges.
        engine: The last pattern as llama.cpp runs it, if that differs.
        limit: What that changes.
        shows: A pattern of the texts that show it, if no pattern of the engine's can say it.
    """

    name: str
    steps: tuple[str, ...]
    ignore_merges: bool = False
    engine: str | None = None
    limit: str | None = None
    shows: str | None = None


@dataclass(frozen=True)
class Structure:
    """What llama.cpp is told.

    Args:
        model: ``gpt2`` or ``llama``.
        pre: The pre-tokenizer's row; None for ``llama``.
        space_prefix: Is a space put in front of the text.
        normalizes: Does the source normalize to NFC, which llama.cpp does not.
        metaspace: Is the space in front put by Metaspace, which differs from llama.cpp at special tokens.
    """

    model: str
    pre: PreTokenizer | None
    space_prefix: bool
    normalizes: bool
    metaspace: bool


@functools.cache
def pre_tokenizers() -> tuple[PreTokenizer, ...]:
    """Return the table of known pre-tokenizers."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["pre_tokenizer"]
    return tuple(
        PreTokenizer(**{**row, "steps": tuple(plain_pattern(step) for step in row["steps"])})
        for row in rows
    )


def recognize(source: TokenizerSource) -> Structure:
    """Say how llama.cpp does what the source's tokenizer does.

    Raises:
        UnsupportedError: A part is not known, or the parts together are nothing that llama.cpp does.
    """
    unknown = list(_unknown_parts(source.tokenizer))
    if unknown:
        known = "; ".join(f"{key}: {parts}" for key, parts in KNOWN_PARTS.items())
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} has parts that llama.cpp cannot follow: "
            f"{'; '.join(unknown)}; known are: {known}"
        )
    byte_level = [p for p in parts_of(source.tokenizer, "pre_tokenizer") if _is_bytes(p)]
    return _byte_level(source) if byte_level else _sentencepiece(source)


def _unknown_parts(tokenizer: dict[str, Any]) -> Iterable[str]:
    known = {
        "normalizer": lambda p: (
            p.get("type") == "NFC" or prepends_underline(p) or replaces_spaces(p)
        ),
        "pre_tokenizer": _known_pre_tokenizer,
        "decoder": lambda p: p.get("type") in _DECODERS,
        "post_processor": lambda p: p.get("type") in ("ByteLevel", "TemplateProcessing"),
    }
    yield from _unknown_model(tokenizer["model"])
    for key, is_known in known.items():
        for part in parts_of(tokenizer, key):
            if not is_known(part):
                yield f"{key} {describe(part)}"


def _unknown_model(model: dict[str, Any]) -> Iterable[str]:
    # Files of before 2021 leave the type out; only BPE has merges.
    if model.get("type", "BPE" if "merges" in model else None) != "BPE":
        yield f"model {model.get('type')}"
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            yield f"model {key}={model[key]!r}"


def _known_pre_tokenizer(part: Part) -> bool:
    if part.get("type") == "ByteLevel":
        return not part.get("add_prefix_space")
    if part.get("type") == "Metaspace":
        return part.get("replacement") == UNDERLINE
    return splits_nothing(part) or split_step(part) is not None


def _is_bytes(part: Part) -> bool:
    return part.get("type") == "ByteLevel"


def _byte_level(source: TokenizerSource) -> Structure:
    steps = _steps(parts_of(source.tokenizer, "pre_tokenizer"))
    normalizer = parts_of(source.tokenizer, "normalizer")
    if any(part.get("type") != "NFC" for part in normalizer):
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} replaces spaces and then cuts text into bytes "
            f"({'; '.join(map(describe, normalizer))}), which llama.cpp does not; known are none and NFC"
        )
    pre = _find(source, steps)
    return Structure("gpt2", pre, space_prefix=False, normalizes=bool(normalizer), metaspace=False)


def _steps(parts: list[Part]) -> tuple[str, ...]:
    """Return the patterns; ByteLevel has one of its own unless it is told to have none."""
    found: list[str] = []
    for part in parts:
        if not _is_bytes(part):
            found.append(split_step(part) or describe(part))
        elif part.get("use_regex", True):
            found.append("GPT2")
    return tuple(found)


def _find(source: TokenizerSource, steps: tuple[str, ...]) -> PreTokenizer:
    rows = [row for row in pre_tokenizers() if row.steps == steps]
    ignores = bool(source.model.get("ignore_merges"))
    # Where every token is made by a merge, taking words whole changes nothing, or the check will tell.
    rows.sort(key=lambda row: row.ignore_merges != ignores)
    if not rows:
        known = ", ".join(sorted(row.name for row in pre_tokenizers()))
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} cuts text into words in a way that llama.cpp has no name "
            f"for: {' then '.join(map(repr, steps)) or 'not at all'}; it has names for those of: {known}; "
            f"another name would give other token ids"
        )
    return rows[0]


def _sentencepiece(source: TokenizerSource) -> Structure:
    normalizer = parts_of(source.tokenizer, "normalizer")
    before = parts_of(source.tokenizer, "pre_tokenizer")
    metaspace = next((part for part in before if part.get("type") == "Metaspace"), None)
    underlines = metaspace is not None or any(map(replaces_spaces, normalizer))
    cuts = [part for part in before if not splits_nothing(part) and part is not metaspace]
    if not underlines or cuts or not source.model.get("byte_fallback"):
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} is neither byte-level BPE (a ByteLevel pre-tokenizer) "
            f"nor like SentencePiece (spaces as {UNDERLINE}, no other cuts, byte_fallback), and llama.cpp "
            f"knows no other BPE; it has {_summary(source)}"
        )
    _check_metaspace(source, metaspace)
    prepends = any(map(prepends_underline, normalizer)) or _prefixes(metaspace)
    nfc = any(part.get("type") == "NFC" for part in normalizer)
    return Structure("llama", None, prepends, normalizes=nfc, metaspace=metaspace is not None)


def _prefixes(metaspace: Part | None) -> bool:
    """Does Metaspace put a space in front; files of before 2024 say so with ``add_prefix_space``."""
    if metaspace is None:
        return False
    scheme = metaspace.get("prepend_scheme")
    return scheme != "never" if scheme else bool(metaspace.get("add_prefix_space", True))


def _check_metaspace(source: TokenizerSource, metaspace: Part | None) -> None:
    """Refuse words cut at spaces where a token has a space inside, since llama.cpp does not cut."""
    if metaspace is None or not metaspace.get("split", True):
        return
    inside = sorted(t for t in source.model["vocab"] if UNDERLINE in t[1:])
    if inside:
        raise UnsupportedError(
            f"{source.directory / 'tokenizer.json'} cuts text at spaces (Metaspace, split) and has tokens "
            f"with a space inside ({', '.join(map(repr, inside[:3]))}); llama.cpp would use them"
        )


def _summary(source: TokenizerSource) -> str:
    parts = [
        f"{key} {describe(part)}"
        for key in ("normalizer", "pre_tokenizer")
        for part in parts_of(source.tokenizer, key)
    ]
    fallback = f"byte_fallback={bool(source.model.get('byte_fallback'))}"
    return "; ".join([*parts, fallback])
