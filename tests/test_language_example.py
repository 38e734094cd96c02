"""The example of a language model: its directory becomes a bundle that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.frontend.load import load

EXAMPLE = Path(__file__).parents[1] / "examples" / "language_model"
MODULES = ("llama_cpp", "transformers", "tokenizers", "gguf")


@pytest.fixture(autouse=True)
def _installed() -> None:
    for module in MODULES:
        pytest.importorskip(module)


def test_the_example_builds_and_answers(tmp_path: Path) -> None:
    from qcompile.runtime.generation import generate

    options = BuildOptions(target="host", format="gguf", precision="q4_k_m")
    bundle = build(load(str(EXAMPLE / "books-7m")), tmp_path / "books.qc", options)
    assert bundle.passed
    assert bundle.manifest.sizes["artifact_bytes"] < 4_800_000
    answer = "".join(generate(bundle.path, "It was a dark", chat=False, max_tokens=12))
    assert len(answer.split()) > 4


@pytest.mark.slow
def test_with_calibration_it_loses_less_than_llama_cpp_does(tmp_path: Path) -> None:
    """llama-quantize's q4_k_m, with an imatrix, diverges by 0.0035 on other text of this kind."""
    from qcompile.compiler.driver.evaluate import evaluate

    texts = str(EXAMPLE / "calibration.txt")
    options = BuildOptions(
        target="host", format="gguf", precision="q4_k_m", calibrate=texts, seq_len=256
    )
    bundle = build(load(str(EXAMPLE / "books-7m")), tmp_path / "books.qc", options)
    found = evaluate(bundle.path, EXAMPLE / "books-7m", EXAMPLE / "test.txt", seq_len=256)
    assert found.to_data()["kl"]["mean"] < 0.0025
