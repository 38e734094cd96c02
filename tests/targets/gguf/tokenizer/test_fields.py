"""The fields themselves, against the gguf package's reader of the same files, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.errors import ModelError, UnsupportedError
from qcompile.targets.gguf.tokenizer.fields import tokenizer_fields

gguf = pytest.importorskip("gguf")
pytest.importorskip("tokenizers")
Make = Callable[..., Path]
KEY = "tokenizer.ggml."


def write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def test_special_ids_and_merges_are_those_of_the_gguf_package(make: Make) -> None:
    for name in ("gpt-2", "llama-bpe", "llama2"):
        directory = make(name, pad_token="<|im_start|>" if name != "llama2" else "<unk>")
        fields = tokenizer_fields(directory, 2000)
        theirs = gguf.SpecialVocab(directory, load_merges=True, n_vocab=2000)

        numbers = {k.removesuffix("_token_id"): v for k, v in fields.items() if k.endswith("_id")}
        ours = {k.removeprefix(KEY): v for k, v in numbers.items()}
        ours = {
            "pad" if k == "padding" else "unk" if k == "unknown" else k: v for k, v in ours.items()
        }
        assert {k: ours[k] for k in theirs.special_token_ids} == theirs.special_token_ids
        assert fields["tokenizer.chat_template"] == theirs.chat_template
        for which, value in theirs.add_special_token.items():
            assert fields.get(f"{KEY}add_{which}_token", False) == value
        if name != "llama2":
            assert fields[KEY + "merges"] == theirs.merges


def test_the_vocabulary_is_padded(make: Make) -> None:
    fields = tokenizer_fields(make("gpt-2"), 910)
    used = len([kind for kind in fields[KEY + "token_type"] if kind != 5])

    assert len(fields[KEY + "tokens"]) == len(fields[KEY + "token_type"]) == 910
    assert fields[KEY + "tokens"][used:] == [f"[PAD{i}]" for i in range(used, 910)]


def test_types_of_tokens(make: Make) -> None:
    def add(state: dict) -> None:
        size = len(state["model"]["vocab"])
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i, text in enumerate(("▁▁▁▁", "<|looks_special|>")):
            state["added_tokens"].append(
                {"id": size + i, "content": text, "special": False, **flags}
            )

    directory = make("gemma", add)
    fields = tokenizer_fields(directory, 2000)
    types = dict(zip(fields[KEY + "tokens"], fields[KEY + "token_type"], strict=True))

    assert [
        types[t] for t in ("<unk>", "<s>", "<0x0A>", "    ", "<|looks_special|>", "[PAD1999]")
    ] == [
        *(2, 3, 6),
        *(4, 3, 5),
    ]


def test_scores_fall_in_the_order_of_merges(make: Make) -> None:
    directory = make("llama2")
    state = json.loads((directory / "tokenizer.json").read_text())
    fields = tokenizer_fields(directory, 2000)
    scores = dict(zip(fields[KEY + "tokens"], fields[KEY + "scores"], strict=True))
    merged = list(dict.fromkeys("".join(pair) for pair in state["model"]["merges"]))

    assert [scores[text] for text in merged] == [-float(i) for i in range(len(merged))]


def test_added_tokens_past_the_embedding_are_left_out(make: Make) -> None:
    def add(state: dict) -> None:
        state["added_tokens"].append({**state["added_tokens"][0], "id": 5000, "content": "<image>"})

    assert "<image>" not in tokenizer_fields(make("gpt-2", add), 1000)[KEY + "tokens"]


def test_named_chat_templates(make: Make) -> None:
    directory = make("gpt-2", chat_template=[{"name": "tool_use", "template": "T"}])
    fields = tokenizer_fields(directory, 1000)

    assert fields["tokenizer.chat_template.tool_use"] == "T"
    assert fields["tokenizer.chat_templates"] == ["tool_use"]
    assert "<|im_start|>" in fields["tokenizer.chat_template"]


def test_the_model_of_the_project(shared: Path) -> None:
    fields = tokenizer_fields(shared / "models" / "lm", 4096)

    assert [fields[KEY + name] for name in ("model", "pre")] == ["gpt2", "gpt-2"]
    names = ("bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")
    assert [fields[KEY + name] for name in names] == [0, 2, 3, False]


def test_too_many_stop_tokens(make: Make) -> None:
    directory = make("gpt-2")
    write(directory / "generation_config.json", {"eos_token_id": [2, 10, 11, 12]})

    with pytest.raises(UnsupportedError, match=r"4 tokens that end an answer.*10, 11, 12"):
        tokenizer_fields(directory, 1000)


def test_nothing_that_ends_a_text(make: Make) -> None:
    with pytest.raises(UnsupportedError, match=r"nothing in .* says which token ends a text"):
        tokenizer_fields(make("gpt-2", eos_token=None), 1000)


def test_a_vocabulary_larger_than_the_embedding(make: Make) -> None:
    with pytest.raises(UnsupportedError, match="tokens past the 800 rows"):
        tokenizer_fields(make("gpt-2"), 800)


def test_parts_that_are_not_parts(make: Make) -> None:
    def break_it(state: dict) -> None:
        state["pre_tokenizer"] = "ByteLevel"
        state["added_tokens"].append("<s>")

    with pytest.raises(ModelError, match="pre_tokenizer, added_tokens cannot be read"):
        tokenizer_fields(make("gpt-2", break_it), 1000)


def test_two_tokens_with_one_text(make: Make) -> None:
    def clash(state: dict) -> None:
        state["model"]["vocab"]["[PAD999]"] = len(state["model"]["vocab"])

    with pytest.raises(UnsupportedError, match=r"has '\[PAD999\]' under more than one id"):
        tokenizer_fields(make("gpt-2", clash), 1000)


def test_merges_that_scores_cannot_give(make: Make) -> None:
    def one_way(state: dict) -> None:
        ways = {left + right: [left, right] for left, right in state["model"]["merges"]}
        state["model"]["merges"] = list(ways.values())

    with pytest.raises(UnsupportedError, match="was trained with merges"):
        tokenizer_fields(make("llama2", one_way), 1000)


def test_a_byte_without_a_token(make: Make) -> None:
    def lose(state: dict) -> None:
        vocab = state["model"]["vocab"]
        vocab["lost"] = vocab.pop("<0x0A>")

    with pytest.raises(UnsupportedError, match=r"no token for 1 of the 256, the first <0x0A>"):
        tokenizer_fields(make("llama2", lose), 1000)


def test_a_directory_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        tokenizer_fields(tmp_path, 10)


def test_sentencepiece_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")

    with pytest.raises(ModelError, match="without the package 'sentencepiece'"):
        tokenizer_fields(tmp_path, 10)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file(make: Make, file: str) -> None:
    directory = make("gpt-2")
    (directory / file).write_text('{"version": ', encoding="utf-8")

    with pytest.raises(ModelError, match=f"{file} cannot be read as JSON"):
        tokenizer_fields(directory, 1000)
