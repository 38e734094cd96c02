"""The parts of ``tokenizer.json`` (normalizer, pre-tokenizer, decoder, post-processor) in one spelling.

Source of the parts and their defaults: the serialized forms of Hugging Face's ``tokenizers`` (0.22).
"""

from __future__ import annotations

import re
from typing import Any

Part = dict[str, Any]

GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # ByteLevel's own
)
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UNDERLINE = "▁"  # what SentencePiece writes for a space

_SEQUENCES = ("normalizers", "pretokenizers", "decoders", "processors")
# Contractions in other words: the same language for each.
_CONTRACTIONS = (
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    "'(?i:[sdmt]|ll|ve|re)",
    "(?i:'[sdmt]|'ll|'ve|'re)",
    "(?i:'s|'t|'re|'ve|'m|'d|'ll)",
)


def parts_of(tokenizer: Part, key: str) -> list[Part]:
    """Return a part of ``tokenizer.json`` as the list of its simple parts, in order."""
    return _flat(tokenizer.get(key))


def describe(part: Part) -> str:
    """Return a part in one line, its settings after its name."""
    settings = ", ".join(f"{key}={value!r}" for key, value in part.items() if key != "type")
    return f"{part.get('type')}({settings})"


def split_step(part: Part) -> str | None:
    """Return how a part of a pre-tokenizer cuts text: a pattern, or the name of a way; None if unknown.

    A pattern's matches are isolated. Dropping what does not match is the same, for patterns that match
    everything, as all are that are used so.
    """
    kind = part.get("type")
    if kind == "Split":
        pattern = part.get("pattern", {}).get("Regex")
        way = (part.get("behavior"), bool(part.get("invert")))
        known = pattern is not None and way in (("Isolated", False), ("Removed", True))
        return plain_pattern(pattern) if known else None
    if kind == "Digits":
        return r"\p{N}" if part.get("individual_digits") else r"\p{N}+"
    if kind == "Punctuation":
        return "contiguous punctuation" if part.get("behavior") == "Contiguous" else None
    return None


def plain_pattern(pattern: str) -> str:
    r"""Return a pattern in the one spelling that patterns are compared in.

    Possessive repeats, ``\p{N}{1}`` and literal line ends are other spellings of the same in all patterns
    that tokenizers use: what follows a possessive repeat there never matches what it took.
    """
    for spelling in _CONTRACTIONS:
        pattern = pattern.replace(spelling, CONTRACTIONS)
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    pattern = re.sub(r"(?<=[?+*])\+", "", pattern)
    pattern = pattern.replace(r"\p{N}{1}", r"\p{N}")
    return pattern.replace(GPT2_PATTERN, "GPT2").replace(CONTRACTIONS, "CONTRACTIONS")


def full_pattern(pattern: str) -> str:
    """Return a pattern of the table as a regular expression."""
    return pattern.replace("CONTRACTIONS", CONTRACTIONS).replace("GPT2", GPT2_PATTERN)


def prepends_underline(part: Part) -> bool:
    """Is it the normalizer that puts SentencePiece's dummy space in front."""
    return part.get("type") == "Prepend" and part.get("prepend") == UNDERLINE


def replaces_spaces(part: Part) -> bool:
    """Is it the normalizer that writes SentencePiece's underline for a space."""
    pattern = part.get("pattern", {}).get("String")
    return part.get("type") == "Replace" and (pattern, part.get("content")) == (" ", UNDERLINE)


def splits_nothing(part: Part) -> bool:
    """Is it a split at spaces where the normalizer has left none."""
    return part.get("type") == "Split" and part.get("pattern") == {"String": " "}


def _flat(part: Part | None) -> list[Part]:
    if part is None:
        return []
    if part.get("type") != "Sequence":
        return [part]
    inner: list[Part] = next((part[key] for key in _SEQUENCES if key in part), [])
    return [simple for one in inner for simple in _flat(one)]
