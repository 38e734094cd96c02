"""What tokenizer.json does, and llama.cpp's name of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.gguf.tokenizer.parts import full_pattern, plain_pattern
from qcompile.targets.gguf.tokenizer.source import read_source
from qcompile.targets.gguf.tokenizer.structure import Structure, pre_tokenizers, recognize

tokenizers = pytest.importorskip("tokenizers")
Make = Callable[..., Path]
LLAMA3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def structure(make: Make, name: str, **parts: Any) -> Structure:
    def change(state: dict) -> None:
        model = parts.pop("model", {})
        state |= parts
        state["model"] |= model

    return recognize(read_source(make(name, change)))


def split(pattern: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [cut, BYTES]}


@pytest.mark.parametrize(
    "name", ["gpt-2", "smollm", "falcon", "llama-bpe", "dbrx", "qwen2", "deepseek-v3", "tekken"]
)
def test_the_name_follows_from_the_parts(make: Make, name: str) -> None:
    found = structure(make, name)

    assert (found.model, found.pre and found.pre.name) == ("gpt2", name)
    assert found.normalizes == (name == "qwen2")


@pytest.mark.parametrize(
    ("name", "prefix", "metaspace"),
    [("llama2", True, False), ("metaspace", True, True), ("gemma", False, False)],
)
def test_sentencepiece_in_tokenizer_json(
    make: Make, name: str, prefix: bool, metaspace: bool
) -> None:
    assert structure(make, name) == Structure("llama", None, prefix, False, metaspace)


@pytest.mark.parametrize(
    "contractions",
    [
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        "'(?i:[sdmt]|ll|ve|re)",
    ],
)
def test_spellings_of_one_pattern_are_one(make: Make, contractions: str) -> None:
    possessive = LLAMA3.replace("]?", "]?+", 1).replace(r"\p{N}]+[", r"\p{N}]++[")
    line_ends = LLAMA3.replace(r"\r\n", "\r\n")

    for pattern in (LLAMA3, possessive, line_ends):
        found = structure(make, "dbrx", pre_tokenizer=split(f"{contractions}|{pattern}"))
        assert found.pre is not None
        assert found.pre.name == "dbrx"


def test_keeping_matches_is_dropping_the_rest(make: Make) -> None:
    pattern = f"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LLAMA3}"
    found = structure(make, "dbrx", pre_tokenizer=split(pattern, "Removed", invert=True))

    assert found.pre is not None
    assert found.pre.name == "dbrx"


def test_every_pattern_of_the_table_is_one_that_tokenizers_runs() -> None:
    """A pattern cuts a text without losing any of it, and the engine's pattern is one too."""
    text = "Hello, WORLD's 12345 x²  \t\n\n\r\n 你好。naïve!"
    for row in pre_tokenizers():
        for step in [*row.steps, *([row.engine] if row.engine else [])]:
            if step != "contiguous punctuation":
                pattern = tokenizers.Regex(full_pattern(step))
                pieces = tokenizers.pre_tokenizers.Split(pattern, "isolated").pre_tokenize_str(text)
                assert "".join(piece for piece, _ in pieces) == text


def test_names_of_the_table_are_distinct_and_their_steps_too() -> None:
    rows = pre_tokenizers()

    assert len({row.name for row in rows}) == len(rows)
    assert len({(row.steps, row.ignore_merges) for row in rows}) == len(rows)


def test_a_plain_pattern_stays_plain() -> None:
    for row in pre_tokenizers():
        assert [plain_pattern(full_pattern(step)) for step in row.steps] == list(row.steps)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase()"),
        ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "pre_tokenizer BertPreTokenizer()"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "add_prefix_space=True"),
        ({"decoder": {"type": "WordPiece", "prefix": "##"}}, "decoder WordPiece(prefix='##')"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post_processor RobertaProcessing()"),
        ({"model": {"type": "Unigram"}}, "model Unigram"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "model end_of_word_suffix='</w>'"),
        ({"pre_tokenizer": split(r"\w+|\W+")}, r"no name for: '\\w+|\\W+'"),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "replaces spaces"),
        ({"pre_tokenizer": None}, "neither byte-level BPE"),
    ],
)
def test_an_unknown_part_is_named(make: Make, parts: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedError, match=re.escape(named)):
        structure(make, "gpt-2", **parts)


def test_all_unknown_parts_are_named_and_the_known_ones(make: Make) -> None:
    with pytest.raises(UnsupportedError) as error:
        structure(make, "gpt-2", normalizer={"type": "NFKC"}, decoder={"type": "CTC"})

    assert "NFKC" in str(error.value)
    assert "CTC" in str(error.value)
    assert "known are: model: BPE" in str(error.value)


def test_words_cut_at_spaces_that_tokens_cross(make: Make) -> None:
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}

    def change(state: dict) -> None:
        state["pre_tokenizer"] = metaspace
        state["model"]["vocab"]["a▁b"] = len(state["model"]["vocab"])

    with pytest.raises(UnsupportedError, match="tokens with a space inside"):
        recognize(read_source(make("metaspace", change)))
