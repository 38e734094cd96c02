"""The texts, and the way to make one of them short."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.targets.gguf.tokenizer.corpus import corpus
from qcompile.targets.gguf.tokenizer.shrink import shrink


def test_the_same_seed_gives_the_same_texts() -> None:
    assert corpus(1, 100, ["<s>"]) == corpus(1, 100, ["<s>"])
    assert corpus(1, 100, ["<s>"]) != corpus(2, 100, ["<s>"])


def test_every_category_white_space_and_token_is_there() -> None:
    texts = corpus(0, 500, ["<|token|>"])
    categories = {unicodedata.category(character) for text in texts for character in text}

    assert len(categories - {"Cs", "Cn"}) == 28  # all but surrogates and what is not assigned
    assert {"", " ", "\r\n", "\u3000", "\ufffd"} <= {*texts, *"".join(texts)}
    assert "a<|token|>b" in texts
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) < 1000  # llama.cpp's patterns run on the stack


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_a_text_is_shrunk_to_what_shows_the_difference(
    before: str, inside: str, after: str
) -> None:
    text = f"{before}é{inside}12{after}"

    def fails(candidate: str) -> bool:
        return "é" in candidate and "12" in candidate[candidate.index("é") :]

    assert shrink(text, fails) == "é12"


def test_shrinking_stops() -> None:
    tried = []

    def fails(candidate: str) -> bool:
        tried.append(candidate)
        return False

    assert shrink("x" * 5000, fails, most_tries=50) == "x" * 5000
    assert len(tried) == 50
