"""``qcompile generate``: text on stdout, figures on stderr."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from qcompile.runtime.generation import generate

Run = Callable[..., Result]
Refuses = Callable[..., str]


def test_text_and_statistics(run: Run, language_gguf: Path) -> None:
    expected = "".join(generate(language_gguf, "The sea", chat=False, max_tokens=9))
    found = run("generate", language_gguf, "The sea", "--raw", "--max-tokens", "9")
    assert found.exit_code == 0, found.output
    assert found.stdout == expected + "\n"
    assert re.fullmatch(
        r"2 tokens read in [\d.]+ s, 9 made \([\d.]+ tokens/s\), ended by --max-tokens\n",
        found.stderr,
    )


def test_data(run: Run, language_gguf: Path) -> None:
    given = ["--max-tokens", "9", "--temperature", "1", "--seed", "2", "--stop", "e", "--json"]
    found = run("generate", language_gguf, "The sea", *given)
    assert found.exit_code == 0, found.output
    data = json.loads(found.stdout)
    assert data["finish"] == "stop"
    assert "e" not in data["text"]
    assert data["prompt_tokens"] > 3, "the chat template is used"
    assert (
        json.loads(run("generate", language_gguf, "The sea", *given).stdout)["text"] == data["text"]
    )


def test_refusals(refuses: Refuses, here: Path, language_gguf: Path, built: Path) -> None:
    message = refuses("generate", language_gguf, " a" * 2000)
    assert re.fullmatch(
        r"the prompt has \d+ tokens, and the model's context is 1024; give at most 1023, .*",
        message,
    )
    assert refuses("generate", language_gguf, "", "--raw").startswith("the prompt has no tokens")
    assert refuses("generate", "no.gguf", "a") == "no.gguf is no bundle and no .gguf file"
    message = refuses("generate", built, "a")
    assert message == f"{built} is for onnxruntime: it holds no language model in GGUF"
    (here / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    assert refuses("generate", "bad.gguf", "a").startswith("bad.gguf: llama.cpp ")
