"""Each field written wrong on purpose: the check finds it, with a short input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.errors import ModelError
from qcompile.targets.gguf.tokenizer.report import Difference, TokenizerReport

pytest.importorskip("llama_cpp")
Make = Callable[..., Path]
Check = Callable[..., TokenizerReport]


def found(report: TokenizerReport, kind: str) -> Difference:
    return next(one for one in report.differences if one.kind == kind)


@pytest.mark.parametrize(
    ("right", "wrong", "longest"),
    [
        ("gpt-2", "llama-bpe", 4),
        ("gpt-2", "default", 4),
        ("smollm", "gpt-2", 4),
        ("llama-bpe", "qwen2", 4),
        ("dbrx", "gpt-2", 4),
        ("deepseek-v3", "dbrx", 4),
    ],
)
def test_a_wrong_pre_tokenizer(
    make: Make, check: Check, right: str, wrong: str, longest: int
) -> None:
    report = check(make(right), {"tokenizer.ggml.pre": wrong})

    one = found(report, "ids of")
    assert len(one.text) <= longest
    assert one.source != one.gguf
    assert report.found > 20


def test_bos_that_is_not_added(make: Make, check: Check) -> None:
    report = check(make("llama-bpe"), {"tokenizer.ggml.add_bos_token": False})

    assert report.differences == (Difference("ids with what is added of", "", (0,), ()),)


def test_a_wrong_eos(make: Make, check: Check) -> None:
    report = check(make("llama2"), {"tokenizer.ggml.eos_token_id": 1})

    assert Difference("the id of", "eos", 2, 1) in report.differences


def test_a_control_token_that_is_written_as_ordinary(make: Make, check: Check) -> None:
    directory = make("gpt-2")
    report = check(directory, types={1: 1})

    assert found(report, "ids of").text == "<|im_start|>"
    assert found(report, "the text, as an answer, of").text == "1"
    assert any(one.kind == "ids of the chat" for one in report.differences)


def test_an_ordinary_token_that_is_written_as_control(make: Make, check: Check) -> None:
    report = check(make("gemma"), types={300: 3})

    assert found(report, "the text, as an answer, of").text == "300"


def test_a_token_that_is_written_as_unused(make: Make, check: Check) -> None:
    report = check(make("gpt-2"), types={300: 5})

    assert found(report, "the text of the token").text == "300"


def test_a_dummy_space_that_is_not_put(make: Make, check: Check) -> None:
    report = check(make("llama2"), {"tokenizer.ggml.add_space_prefix": False})

    assert len(found(report, "ids of").text) == 1


def test_scores_in_the_wrong_order(make: Make, check: Check) -> None:
    report = check(make("llama2"), change=lambda fields: fields["tokenizer.ggml.scores"].reverse())

    assert len(found(report, "ids of").text) <= 4


def test_a_chat_template_that_is_cut(make: Make, check: Check) -> None:
    report = check(make("gpt-2"), {"tokenizer.chat_template": "{{ messages }}"})

    assert found(report, "the chat template").text == "default"


def test_a_file_that_llama_cpp_refuses(make: Make, check: Check) -> None:
    with pytest.raises(ModelError, match="unknown pre-tokenizer type: 'nonsense'"):
        check(make("gpt-2"), {"tokenizer.ggml.pre": "nonsense"})


def test_the_same_seed_gives_the_same_report(make: Make, check: Check) -> None:
    changed: dict[str, Any] = {"tokenizer.ggml.pre": "smollm"}

    reports = [check(make("gpt-2"), changed) for _ in range(2)]

    assert reports[0] == reports[1]
    assert str(reports[0].differences[0]).startswith("ids of ")
