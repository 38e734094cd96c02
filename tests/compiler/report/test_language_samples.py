"""The next tokens of a language model's vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qcompile.compiler.report.language_samples import SHOWN, tokens

LENGTH, WORDS = 20, 7


def arrays(first: int = 0) -> tuple[dict, dict, dict]:
    random = np.random.default_rng(0)
    ids = np.arange(first, first + LENGTH)[None]
    sides = [random.standard_normal((1, LENGTH, WORDS)).astype(np.float32) * 4 for _ in range(2)]
    return {"input_ids": ids}, {"logits": sides[0]}, {"logits": sides[1]}


def test_probabilities_are_those_of_the_logits(tmp_path: Path) -> None:
    inputs, expected, found = arrays()
    rows = tokens(tmp_path / "none.gguf", inputs, expected, found)
    assert [row.token for row in rows] == [f"token {k}" for k in range(LENGTH - SHOWN, LENGTH)]
    for position, row in enumerate(rows, LENGTH - SHOWN):
        for logits, token, share in (
            (expected["logits"], row.expected, row.expected_share),
            (found["logits"], row.found, row.found_share),
        ):
            values = np.exp(logits[0, position].astype(np.float64))
            assert token == f"token {values.argmax()}"
            assert share == pytest.approx(values.max() / values.sum())
        assert row.same == (row.expected == row.found)
    assert {row.same for row in rows} == {True, False}


def test_words_are_the_models(language_gguf: Path) -> None:
    pytest.importorskip("llama_cpp")
    from qcompile.runtime.llama.model import Model

    model = Model(language_gguf, empty=True)
    inputs, expected, found = arrays(first=300)
    inputs["input_ids"][0, -1] = 10**6  # llama.cpp would not check it
    rows = tokens(language_gguf, inputs, expected, found)
    said = [model.piece(k, special=True).decode("utf-8", "replace") for k in range(304, 319)]
    assert [row.token.replace("␣", " ") for row in rows[:-1]] == said
    assert rows[-1].token == "token 1000000"
