"""GGUF files with trained tokenizers of every structure, in llama.cpp, against their sources."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompile.targets.gguf.tokenizer.report import TokenizerReport
from qcompile.targets.gguf.tokenizer.structure import pre_tokenizers

pytest.importorskip("llama_cpp")
Make = Callable[..., Path]
Check = Callable[..., TokenizerReport]
TRAINED_BELOW = ("gpt-2", "smollm", "llama-bpe", "dbrx", "deepseek-v3", "falcon", "qwen2", "tekken")
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NFC = "llama.cpp does not normalize text to Unicode's NFC"


@pytest.mark.parametrize(
    "name", ["gpt-2", "smollm", "llama-bpe", "dbrx", "deepseek-v3", "falcon", "llama2", "gemma"]
)
def test_the_ids_and_texts_are_the_same(make: Make, check: Check, name: str) -> None:
    report = check(make(name))

    assert report.differences == ()
    assert report.limits == ()
    assert report.cases > 2500


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("qwen2", NFC),
        ("tekken", "llama.cpp tells capitals from small letters in English only"),
        ("metaspace", "llama.cpp puts a space before every stretch of text between special tokens"),
    ],
)
def test_what_llama_cpp_cannot_do_is_told_from_errors(
    make: Make, check: Check, name: str, sentence: str
) -> None:
    report = check(make(name))

    assert report.differences == ()
    assert [limit.sentence.startswith(sentence) for limit in report.limits] == [True]
    assert report.limits[0].count > 10


OTHERS = [row.name for row in pre_tokenizers() if row.name not in TRAINED_BELOW]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_rest_of_the_table(make: Make, check: Check, name: str) -> None:
    report = check(make(name))

    assert report.differences == ()


def test_a_limit_does_not_hide_an_error(make: Make, check: Check) -> None:
    report = check(make("qwen2"), {"tokenizer.ggml.pre": "gpt-2"})

    ids = next(one for one in report.differences if one.kind == "ids of")
    assert len(ids.text) <= 4
    assert unicodedata.is_normalized("NFC", ids.text)
    assert [limit.sentence for limit in report.limits] == [NFC]


def test_white_space_around_tokens_of_phi_3(make: Make, check: Check) -> None:
    """Phi-3's marks take the white space after them; llama.cpp does that for models of that name only."""

    def strip(state: dict) -> None:
        vocab = state["model"]["vocab"]
        vocab["<|endoftext|>"] = len(vocab)  # without it llama.cpp refuses a model of that name
        for entry in state["added_tokens"]:
            entry["rstrip"] = entry["content"] in ("<|user|>", "<|end|>", "</s>")

    directory = make("llama2", strip)
    chat = "{% for m in messages %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(chat, encoding="utf-8")

    with_name, without = (check(directory, name=name) for name in ("Phi-3-mini", "mini"))

    assert with_name.differences == ()
    kinds = {one.kind for one in without.differences}
    assert kinds == {"ids of the chat"}
    assert any("white space" in limit.sentence for limit in without.limits)


def test_marks_that_are_looked_for_in_the_normalized_text(make: Make, check: Check) -> None:
    def normalize(state: dict) -> None:
        for entry in state["added_tokens"]:
            entry["normalized"] = True

    report = check(make("llama2", normalize))

    assert report.differences == ()
    assert [bool(re.search("as (it|they) stand", one.sentence)) for one in report.limits] == [
        True
    ] * 2


def test_a_class_of_transformers_that_reads_the_files_otherwise(make: Make, check: Check) -> None:
    """LlamaTokenizer of transformers 5 builds its own pre-tokenizer; tokenizer.json is what counts."""
    report = check(make("llama2", tokenizer_class="LlamaTokenizer"))

    assert report.differences == ()
    assert ["LlamaTokenizer" in limit.sentence for limit in report.limits] == [True]


def test_an_ordinary_token_that_llama_cpp_takes_for_an_end(make: Make, check: Check) -> None:
    def rename(state: dict) -> None:
        vocab = state["model"]["vocab"]
        vocab["</s>"] = len(vocab)

    report = check(make("gpt-2", rename))

    assert report.differences == ()
    assert any("takes for an end" in limit.sentence for limit in report.limits)


def test_what_is_put_after_a_text(make: Make, check: Check) -> None:
    def end(state: dict) -> None:
        entry = {"id": MARKS[2], "ids": [2], "tokens": [MARKS[2]]}
        single = [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": MARKS[2], "type_id": 0}},
        ]
        state["post_processor"] |= {"single": single, "special_tokens": {MARKS[2]: entry}}

    # transformers does not read the setting where tokenizer.json says what is put around a text.
    directory = make("gpt-2", end, add_bos_token=True)

    assert check(directory).differences == ()
    wrong = check(directory, {"tokenizer.ggml.add_eos_token": False})
    assert [(one.text, one.source, one.gguf) for one in wrong.differences] == [("", (2,), ())]


def test_stop_ids_of_the_generation_settings(make: Make, check: Check) -> None:
    def rename(state: dict) -> None:
        vocab = state["model"]["vocab"]
        stop = {**state["added_tokens"][0], "id": len(vocab), "content": "<stop>"}
        vocab["<stop>"] = len(vocab)
        state["added_tokens"].append(stop)

    directory = make("gpt-2", rename)
    size = json.loads((directory / "config.json").read_text())["vocab_size"]
    stops = {"eos_token_id": [2, size - 5 - 1]}
    (directory / "generation_config.json").write_text(json.dumps(stops), encoding="utf-8")

    assert check(directory).differences == ()
    wrong = check(directory, {"tokenizer.ggml.eot_token_id": 1})
    assert [(one.kind, one.text) for one in wrong.differences] == [
        ("does it end an answer:", "<stop>")
    ]


def test_the_model_of_the_project(shared: Path, check: Check) -> None:
    report = check(shared / "models" / "lm")

    assert (report.differences, report.limits) == ((), ())
