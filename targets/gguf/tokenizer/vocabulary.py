"""The vocabulary of a GGUF file: tokens, their types, merges or scores.

Sources: llama.cpp's ``conversion/base.py`` (which token gets which type) and ``src/llama-vocab.cpp`` (what it
does with them); FORMATS A.1.6.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.gguf.tokenizer.parts import UNDERLINE
from qcompile.targets.gguf.tokenizer.source import AddedToken, TokenizerSource

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNREACHABLE_SCORE = -1e9  # below every merge's; unused tokens are never made by merging
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Added tokens that models mark as ordinary though they are marks of a chat or gaps of the vocabulary.
_LOOKS_SPECIAL = re.compile(
    r"<\|.*\|>|<\uff5c.*\uff5c>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL
)

Rows = tuple[list[str], list[int]]


def is_control(token: AddedToken) -> bool:
    """Is an added token one that no text of a user should give."""
    return token.special or _LOOKS_SPECIAL.fullmatch(token.text) is not None


def tokens_and_types(source: TokenizerSource, model: str, vocab_size: int) -> Rows:
    """Return the tokens in the order of their ids, with their types, as many as the model has rows.

    Ids without a token are ``[PADi]``, unused. Added tokens past the last row are left out: the model has no
    embedding for them.

    Raises:
        UnsupportedError: The vocabulary has more ids than the model, or two tokens are the same.
    """
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    unknown = source.model.get("unk_token") if model == "llama" else None
    for text, number in _vocabulary(source, vocab_size).items():
        tokens[number] = text
        types[number] = _type(text, source, model, unknown)
    for number, token in source.added.items():
        if number < vocab_size:
            control = is_control(token)
            tokens[number] = token.text if control else token.text.replace(UNDERLINE, " ")
            types[number] = CONTROL if control else USER_DEFINED
            if token.text == unknown:
                types[number] = UNKNOWN
    _check_distinct(source, tokens)
    return tokens, types


def merges(source: TokenizerSource) -> list[str]:
    """Return the pairs in order of rank, with a space between, and ``Ġ`` for a space inside one."""
    return [f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in pairs(source)]


def pairs(source: TokenizerSource) -> Iterator[tuple[str, str]]:
    """Yield the pairs that are merged, in order of rank; older files write a pair as one string."""
    for pair in source.model.get("merges") or []:
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        yield left, right


def scores(source: TokenizerSource, tokens: list[str], types: list[int]) -> list[float]:
    """Return a score for each token, such that higher scores are made earlier, as the merges say.

    llama.cpp joins any two neighbours that are a token together, best score first. So the merges must name
    every such pair, and the pairs of a token must be neighbours in rank: that is what SentencePiece's own
    models give.

    Raises:
        UnsupportedError: No scores give the order of these merges.
    """
    ranks: dict[str, int] = {}
    named: Counter[str] = Counter()
    for rank, (left, right) in enumerate(pairs(source)):
        ranks.setdefault(left + right, rank)
        named[left + right] += 1
    _check_scores_possible(source, tokens, types, ranks, named)
    # A score that is a whole number below 2^24 is exact in 32 bits.
    order = {text: place for place, text in enumerate(sorted(ranks, key=ranks.__getitem__))}
    return [-float(order[text]) if text in order else UNREACHABLE_SCORE for text in tokens]


def unwritable_bytes(source: TokenizerSource) -> frozenset[int]:
    """Return the bytes that a byte-level vocabulary has no token for.

    Printable bytes of Latin-1 stand for themselves there, the others for the code points from 256 on, in
    order (GPT-2's ``bytes_to_unicode``).
    """
    shown = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    vocabulary = source.model["vocab"]
    return frozenset(byte for byte, letter in letters.items() if letter not in vocabulary)


def _vocabulary(source: TokenizerSource, vocab_size: int) -> dict[str, int]:
    vocabulary: dict[str, int] = source.model["vocab"]
    beyond = sorted(
        (number, text)
        for text, number in vocabulary.items()
        if number >= vocab_size and number not in source.added
    )
    if beyond:
        raise UnsupportedError(
            f"the tokenizer in {source.directory} has {len(beyond)} tokens past the {vocab_size} rows of the "
            f"model's embedding, the first {beyond[0][1]!r} with id {beyond[0][0]}; the tokenizer is another "
            f"model's, or vocab_size in config.json is wrong"
        )
    return {text: number for text, number in vocabulary.items() if number < vocab_size}


def _type(text: str, source: TokenizerSource, model: str, unknown: str | None) -> int:
    if text == unknown:
        return UNKNOWN
    is_byte = model == "llama" and source.model.get("byte_fallback") and _BYTE.fullmatch(text)
    return BYTE if is_byte else NORMAL


def _check_distinct(source: TokenizerSource, tokens: list[str]) -> None:
    twice = [text for text, count in Counter(tokens).items() if count > 1]
    if twice or "" in tokens:
        names = ", ".join(map(repr, twice[:5])) or "''"
        raise UnsupportedError(
            f"the tokenizer in {source.directory} has {names} under more than one id, or an empty token; "
            f"llama.cpp finds a token by its text alone"
        )


def _check_scores_possible(
    source: TokenizerSource,
    tokens: list[str],
    types: list[int],
    ranks: dict[str, int],
    named: Counter[str],
) -> None:
    """Refuse merges that scores cannot give; a few tokens in a thousand may be odd ones."""
    missing = _missing_bytes(tokens, types)
    if missing:
        raise UnsupportedError(
            f"the tokenizer in {source.directory} falls back to bytes and has no token for {len(missing)} of "
            f"the 256, the first {missing[0]}; llama.cpp cannot write such a byte"
        )
    singles = {text for text in tokens if len(text) == 1}
    reachable = singles | ranks.keys()
    odd = [text for text in ranks if named[text] < _splits(text, reachable)]
    if len(odd) * 100 > len(ranks):
        raise UnsupportedError(
            f"the tokenizer in {source.directory} was trained with merges, not made from SentencePiece "
            f"scores: {len(odd)} of its {len(ranks)} merged tokens, {odd[0]!r} among them, could be joined "
            f"from other neighbours too, which llama.cpp would do and the merges forbid; llama.cpp can carry "
            f"merges only for byte-level BPE"
        )


def _splits(text: str, reachable: Any) -> int:
    return sum(text[:i] in reachable and text[i:] in reachable for i in range(1, len(text)))


def _missing_bytes(tokens: list[str], types: list[int]) -> list[str]:
    present = {text for text, kind in zip(tokens, types, strict=True) if kind == BYTE}
    return [text for text in (f"<0x{i:02X}>" for i in range(256)) if text not in present]
