"""A text, and the tiny language model built with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions, Bundle, build
from qcompile.compiler.frontend.load import Source, from_module

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40
Calibrated = Callable[..., BuildOptions]


@pytest.fixture(scope="session")
def with_top1() -> Callable[[nn.Module, torch.Tensor], Source]:
    """Give ``with_top1(module, images)``: the model, judged by the classes that it names itself."""

    def make(module: nn.Module, x: torch.Tensor) -> Source:
        with torch.no_grad():
            labels = module(x).argmax(1).numpy()

        def evaluate(predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, float]:
            logits = next(iter(predict({"image": x.numpy()}).values()))
            return {"top1": 100.0 * float((logits.argmax(1) == labels).mean())}

        shapes = {"image": {0: torch.export.Dim("batch", min=1, max=256)}}
        made = from_module(module, {"image": x[:2]}, dynamic_shapes=shapes, name="net")
        return replace(made, evaluate=evaluate)

    return make


@pytest.fixture(scope="session")
def language_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``text.txt``: about 3,000 letters."""
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="session")
def calibrated(language_text: Path) -> Calibrated:
    """Give ``calibrated(**changes)``: options of a GGUF build that reads 20 sequences of the text."""

    def options(**changes: Any) -> BuildOptions:
        given = {
            "target": "gguf",
            "precision": "q4_k_m",
            "calibrate": language_text,
            "seq_len": 32,
            "num_samples": 20,
        }
        return BuildOptions(**{**given, **changes})

    return options


@pytest.fixture(scope="session")
def language_bundle(
    tiny_source: Source, calibrated: Calibrated, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The tiny Llama built with ``calibrated()``, which no test may change."""
    pytest.importorskip("llama_cpp")
    return build(tiny_source, tmp_path_factory.mktemp("bundle") / "tiny.qc", calibrated())


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the engine's verification takes: for tests of what is before it."""
    from qcompile.targets.gguf import emitter

    monkeypatch.setattr(emitter.compare, "engine_errors", lambda *_: [])
