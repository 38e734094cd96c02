"""What llama.cpp does otherwise than the source whatever a GGUF file says, and how to tell that from errors.

Each limit is written as a change of ``tokenizer.json``. A difference that is gone when the source's own
tokenizer runs with that change is explained by the limit; any other is an error in the file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompile.targets.gguf.tokenizer.parts import (
    UNDERLINE,
    full_pattern,
    parts_of,
    split_step,
)
from qcompile.targets.gguf.tokenizer.source import TokenizerSource
from qcompile.targets.gguf.tokenizer.special import KNOWN_STOPS, id_of
from qcompile.targets.gguf.tokenizer.structure import PreTokenizer, Structure
from qcompile.targets.gguf.tokenizer.vocabulary import is_control

Json = dict[str, Any]

_PLAIN = {"lstrip": False, "rstrip": False, "single_word": False}


@dataclass(frozen=True)
class EngineLimit:
    """A thing that llama.cpp cannot do.

    Args:
        sentence: What it does instead.
        change: Returns ``tokenizer.json`` as one that does so too.
        in_chats: May it excuse a difference in a rendered chat.
        shows: A text that it concerns in a way that no change can say.
    """

    sentence: str
    change: Callable[[Json], Json]
    in_chats: bool = True
    shows: re.Pattern[str] | None = None


def engine_limits(source: TokenizerSource, structure: Structure) -> list[EngineLimit]:
    """Return the limits that concern a tokenizer."""
    limits = []
    if structure.normalizes:
        limits.append(
            EngineLimit("llama.cpp does not normalize text to Unicode's NFC", _without_nfc)
        )
    if structure.metaspace and structure.space_prefix:
        limits.append(EngineLimit(_METASPACE, _prepending))
    if structure.pre is not None and structure.pre.limit is not None:
        limits.append(_approximation(structure.pre, structure.pre.limit))
    if taken := sorted(TAKEN_AS_CONTROL & _not_special(source)):
        limits.append(_control(taken, source))
    if structure.model == "llama" and any(token.normalized for token in source.added.values()):
        limits.append(EngineLimit(_NORMALIZED, _not_normalized))
    if any(not token.exact for token in source.added.values()):
        limits.append(_stripping(source))
    return limits


# Ordinary tokens with such a text become control tokens in llama.cpp, whatever type the file gives them.
_TAKEN = (
    "</s> <eos> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <turn|> <|return|> <|call|> <|calls|> "
    "<|flush|> <|tool_response> [e~[ <fim-prefix> <fim_prefix> <PRE> ▁<PRE> <fim-suffix> <fim_suffix> <SUF> "
    "▁<SUF> <fim-middle> <fim_middle> <MID> ▁<MID> <fim-pad> <fim_pad> <PAD> [PAD] <fim-repo> <REPO> "
    "<reponame>"
)
TAKEN_AS_CONTROL = KNOWN_STOPS.union(_TAKEN.split())
_NORMALIZED = (
    "llama.cpp finds added tokens in a text as it stands, not in one whose spaces are replaced"
)
_METASPACE = (
    "llama.cpp puts a space before every stretch of text between special tokens, even before one that begins "
    "with a space"
)
_STRIPPING = (
    "llama.cpp does not take white space away around special tokens, or look whether a word ends there, "
    "unless general.name holds 'phi-3'"
)


def all_changes(limits: list[EngineLimit], tokenizer: Json) -> Json:
    """Return ``tokenizer.json`` with every limit's change."""
    for limit in limits:
        tokenizer = limit.change(tokenizer)
    return tokenizer


def _without_nfc(tokenizer: Json) -> Json:
    kept = [part for part in parts_of(tokenizer, "normalizer") if part["type"] != "NFC"]
    return {**tokenizer, "normalizer": {"type": "Sequence", "normalizers": kept} if kept else None}


def _prepending(tokenizer: Json) -> Json:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": UNDERLINE}
    parts = [{"type": "Prepend", "prepend": UNDERLINE}, replace]
    return {
        **tokenizer,
        "normalizer": {"type": "Sequence", "normalizers": parts},
        "pre_tokenizer": None,
    }


def _approximation(pre: PreTokenizer, sentence: str) -> EngineLimit:
    if pre.engine is None:
        return EngineLimit(sentence, dict, shows=re.compile(pre.shows or ""))

    def change(tokenizer: Json) -> Json:
        parts = copy.deepcopy(parts_of(tokenizer, "pre_tokenizer"))
        last = next(part for part in reversed(parts) if split_step(part) == pre.steps[-1])
        last |= {"behavior": "Isolated", "invert": False}
        last["pattern"] = {"Regex": full_pattern(pre.engine or "")}
        return {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}

    return EngineLimit(sentence, change)


def _not_special(source: TokenizerSource) -> set[str]:
    special = {token.text for token in source.added.values() if is_control(token)}
    vocabulary: set[str] = set(source.model["vocab"])
    return (vocabulary | {t.text for t in source.added.values()}) - special


def _control(texts: list[str], source: TokenizerSource) -> EngineLimit:
    entries = [
        {"id": id_of(source, text), "content": text, "special": True, "normalized": False, **_PLAIN}
        for text in texts
    ]

    def change(tokenizer: Json) -> Json:
        rest = [one for one in tokenizer["added_tokens"] if one["content"] not in texts]
        ordered = sorted([*rest, *entries], key=lambda one: one["id"])
        return {**tokenizer, "added_tokens": ordered}

    names = ", ".join(map(repr, texts))
    return EngineLimit(f"llama.cpp takes {names} for control tokens, which they are not", change)


def _stripping(source: TokenizerSource) -> EngineLimit:
    """Return the limit of tokens with white space around; at most that of ASCII is ever taken away."""
    tokens = "|".join(re.escape(token.text) for token in source.added.values() if not token.exact)
    foreign = r"[^\S\x00-\x7F]"
    shows = re.compile(rf"(?:{tokens})\s*{foreign}|{foreign}\s*(?:{tokens})")
    return EngineLimit(_STRIPPING, _exact, in_chats=False, shows=shows)


def _exact(tokenizer: Json) -> Json:
    return {**tokenizer, "added_tokens": [{**one, **_PLAIN} for one in tokenizer["added_tokens"]]}


def _not_normalized(tokenizer: Json) -> Json:
    tokens = [{**one, "normalized": False} for one in tokenizer["added_tokens"]]
    return {**tokenizer, "added_tokens": tokens}
