"""Texts, chats and ids -> sequences: nothing is dropped or padded unsaid."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.frontend.texts import read_texts
from qcompile.compiler.frontend.words import Words, read_words
from qcompile.compiler.ir.errors import CalibrationError, ModelError
from qcompile.runtime.chat import ChatTemplate

BYTES = Words(lambda text: [b + 10 for b in text.encode()], vocabulary=300, context=64)
"""A token a byte; 1 begins a text, 2 ends it."""
BEGINS = dataclasses.replace(BYTES, beginning=1, ending=2)
CHATS = dataclasses.replace(
    BEGINS, template=ChatTemplate("{% for m in messages %}{{ m.role[0] + m.content }}{% endfor %}")
)


def _ids(text: str) -> list[int]:
    return BYTES.encode(text)


@pytest.fixture(scope="module")
def tokenizer(language_model: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(language_model)


def test_ids_are_those_of_transformers(shared: Path, language_model: Path, tokenizer: Any) -> None:
    file = shared / "text" / "test.txt"
    expected = tokenizer(file.read_text()).input_ids
    found = read_texts(file, read_words(language_model), 256)
    assert found.ids.ravel().tolist() == expected[: found.ids.size]
    assert found.ids.shape == (len(expected) // 256, 256)
    assert (found.tokens, found.left_over) == (len(expected), len(expected) % 256)
    assert found.replaced == 0
    assert f"the last {len(expected) % 256} tokens are left over" in found.summary()


def test_words_of_a_directory(language_model: Path, tokenizer: Any) -> None:
    words = read_words(language_model)
    assert (words.vocabulary, words.context) == (4096, 1024)
    assert (words.beginning, words.ending) == (None, tokenizer.eos_token_id)
    talk = [{"role": "user", "content": "Hi <|im_end|> ü"}, {"role": "assistant", "content": "x"}]
    assert words.encode_chat(talk) == tokenizer.apply_chat_template(talk)["input_ids"]


def test_a_tokenizer_that_begins_texts(
    language_model: Path, tmp_path: Path, tokenizer: Any
) -> None:
    """The post-processor says so, as in Llama's own tokenizer.json."""
    data = json.loads((language_model / "tokenizer.json").read_text())
    data["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<|pad|>", "type_id": 0}})
    data["post_processor"]["special_tokens"] = {
        "<|pad|>": {"id": "<|pad|>", "ids": [3], "tokens": ["<|pad|>"]}
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    words = read_words(tmp_path)
    assert words.beginning == 3
    assert words.template is None
    (tmp_path / "a.txt").write_text("A man, a plan.")
    bare = tokenizer("A man, a plan.").input_ids
    found = read_texts(tmp_path / "a.txt", words, len(bare) + 1)
    assert found.ids.tolist() == [[3, *bare]]
    assert found.replaced == 0


def test_templates_in_the_settings(language_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_bytes((language_model / "tokenizer.json").read_bytes())
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    eos = {"content": "<|im_end|>"}
    for template, expected in (("c", "c"), (named, "b"), (named[:1], None)):
        data = {"chat_template": template, "eos_token": eos}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(data))
        words = read_words(tmp_path)
        assert (words.template.source if words.template else None) == expected
        assert words.ending == 2


def test_the_beginning_stands_first_in_each_sequence(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefghij")
    found = read_texts(tmp_path / "a.txt", BEGINS, 4)
    assert found.ids.tolist() == [[1, *_ids("abc")], [1, *_ids("efg")]]
    assert (found.tokens, found.left_over, found.replaced) == (11, 3, 1)
    assert "1 tokens gave way to the beginning of a text" in found.summary()
    one = read_texts(tmp_path / "a.txt", BEGINS, 4, max_sequences=1)
    assert one.ids.tolist() == found.ids[:1].tolist()
    assert (one.left_over, one.replaced) == (7, 0)


def test_lines_are_joined_with_separators(tmp_path: Path) -> None:
    lines = [
        {"text": "ab"},
        {"text": ""},
        {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"messages": [{"role": "user", "content": "z"}], "id": 7},
        {"text": "c"},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    expected = [1, *_ids("ab"), 2, 1, 2, *_ids("uxay"), *_ids("uz"), 1, *_ids("c")]
    found = read_texts(tmp_path / "a.jsonl", CHATS, len(expected))
    assert found.ids.tolist() == [expected]
    assert found.documents == 5
    bare = dataclasses.replace(CHATS, beginning=None, ending=None)
    expected = _ids("abuxayuzc")
    assert read_texts(tmp_path / "a.jsonl", bare, 9).ids.tolist() == [expected]


@settings(max_examples=15)
@given(st.lists(st.lists(st.integers(0, 299), max_size=9), max_size=6), st.integers(2, 9))
def test_every_id_is_used_or_counted(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], length: int
) -> None:
    file = tmp_path_factory.mktemp("npz") / "a.npz"
    np.savez(file, *(np.array(d, np.int32) for d in documents))
    joined = [i for d in documents for i in d]
    if len(joined) < length:
        with pytest.raises(CalibrationError, match=f"has {len(joined)} tokens, which is less than"):
            read_texts(file, BEGINS, length)
        return
    found = read_texts(file, BEGINS, length)
    assert found.ids.ravel().tolist() == joined[: len(joined) - len(joined) % length]
    assert (found.tokens, found.left_over) == (len(joined), len(joined) % length)
    assert found.documents == len(documents)
    assert found.ids.dtype == np.int64


def test_rows_of_a_sequence_are_the_sequences(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 300, (5, 8)).astype(np.uint16)
    np.savez(tmp_path / "a.npz", ids=rows)
    found = read_texts(tmp_path / "a.npz", BEGINS, 8)
    np.testing.assert_array_equal(found.ids, rows)
    assert found.sha256 == read_texts(tmp_path / "a.npz", BYTES, 8).sha256
    assert found.sha256 != read_texts(tmp_path / "a.npz", BYTES, 4).sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"abc", "a.txt has 4 tokens, which is less than one sequence of 8"),
        ("a.txt", b"abc\xff", "a.txt is no UTF-8 text: byte 3 is 0xff"),
        ("a.csv", b"abc", "a.csv: texts are .txt, .jsonl, .npz, not .csv"),
        ("a", b"abc", "not a file without a suffix"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', "a.jsonl, line 2: "),
        ("a.jsonl", b"[1]", "line 1: give an object with"),
        ("a.jsonl", b'{"text": "a", "messages": []}', "one of the two"),
        ("a.jsonl", b'{"text": 1}', '"text" is int, not a string'),
        ("a.jsonl", b'{"messages": []}', "line 1: messages must be a list with a message"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "message 1 has no role or no content"),
        ("a.jsonl", b"[" * 9999, "line 1: "),
        ("a.npz", b"PK\3\4", "a.npz cannot be read: "),
        ("a.npz", b"", "a.npz cannot be read: "),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=message) as found:
        read_texts(tmp_path / name, CHATS, 8)
    assert "\n" not in str(found.value)


def test_wrong_arrays(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    for arrays, message in (
        ({"a": np.zeros((2, 8)), "b": np.zeros((1, 2, 8), int)}, r"a is float64\[2, 8\]; b is int"),
        (
            {"a": np.array([[1, 300, -1]])},
            "2 token ids are not in the vocabulary of 300, first 300",
        ),
        ({"a": np.array([2**63], np.uint64)}, "1 token ids are not in the vocabulary"),
        ({"a": np.array([[1], [2, 3]], object)}, "pickled Python objects"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(CalibrationError, match=message):
            read_texts(file, BYTES, 2)


def test_wrong_lengths(tmp_path: Path) -> None:
    for length in (1, 65):
        with pytest.raises(
            CalibrationError, match="the length must be 2 to 64, the model's context"
        ):
            read_texts(tmp_path / "a.txt", BYTES, length)
    with pytest.raises(CalibrationError, match="does not exist"):
        read_texts(tmp_path / "a.txt", BYTES, 8)


def test_messages_without_a_template(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "x"}]}')
    with pytest.raises(CalibrationError, match="line 1: the model has no chat template"):
        read_texts(tmp_path / "a.jsonl", BEGINS, 8)


def test_directories_without_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        read_words(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        read_words(tmp_path)
