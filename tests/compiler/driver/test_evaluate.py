"""``qcompile evaluate`` on the language model of the tests, against transformers' own losses."""

from __future__ import annotations

import ctypes
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from qcompile.compiler.driver.evaluate import evaluate
from qcompile.compiler.driver.language_models import GgufModel, TorchModel
from qcompile.compiler.ir.errors import CalibrationError, ModelError

Run = Callable[..., Result]
Refuses = Callable[..., str]
LENGTH, SEQUENCES = 64, 9


@pytest.fixture(scope="module")
def dataset(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "part.txt"
    file.write_text((shared / "text" / "test.txt").read_text()[:2600])
    return file


@pytest.fixture(scope="module")
def quantized(language_gguf: Path) -> Path:
    """The model in Q4_0, by llama.cpp itself."""
    llama = pytest.importorskip("llama_cpp").llama_cpp
    settings = llama.llama_model_quantize_default_params()
    settings.ftype = llama.LLAMA_FTYPE_MOSTLY_Q4_0
    file = language_gguf.with_name("q4_0.gguf")
    code = llama.llama_model_quantize(
        str(language_gguf).encode(), str(file).encode(), ctypes.byref(settings)
    )
    assert code == 0
    return file


def _loss(folder: Path, ids: np.ndarray) -> float:
    """Return transformers' own loss of the second half of each sequence."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = torch.from_numpy(ids)
    labels = given.clone()
    labels[:, : LENGTH // 2 + 1] = -100
    with torch.no_grad():
        return float(model(given, labels=labels).loss)


def test_figures(
    run: Run, language_model: Path, quantized: Path, dataset: Path, tmp_path: Path
) -> None:
    arguments = [quantized, "--against", language_model, "--dataset", dataset, "--seq-len", LENGTH]
    result = run("evaluate", *map(str, arguments), "--max-sequences", str(SEQUENCES), "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    ids = TorchModel(language_model).words.encode(dataset.read_text())
    used = np.array(ids[: SEQUENCES * LENGTH]).reshape(SEQUENCES, LENGTH)
    assert found["perplexity_reference"] == pytest.approx(
        np.exp(_loss(language_model, used)), rel=1e-5
    )
    assert 1.0 < found["perplexity"] / found["perplexity_reference"] < 1.3
    assert found["tokens"] == SEQUENCES * (LENGTH // 2 - 1)
    assert found["sequences"] == SEQUENCES
    assert found["dataset"]["left_over"] == len(ids) - used.size
    kl, errors, floor = found["kl"], found["errors"], found["floor"]
    assert 0.001 < kl["median"] < kl["mean"] < kl["p99"] < kl["max"] < 1
    assert 0.8 < found["same_top"] < 1
    assert errors["kl"].keys() == kl.keys()
    assert all(0 < errors["kl"][name] < kl["max"] for name in kl)
    assert 0 <= floor["mean"] < 1e-9
    assert floor["same_top"] == 1
    assert found.keys() == {
        "perplexity", "perplexity_reference", "kl", "same_top", "errors", "floor", "tokens",
        "sequences", "dataset",
    }  # fmt: skip


def test_the_table(run: Run, language_gguf: Path, quantized: Path, dataset: Path) -> None:
    """GGUF against GGUF: the original is the file, and its own two runs differ in their batches."""
    given = ["--dataset", str(dataset), "--seq-len", "64", "--max-sequences", "2"]
    result = run("evaluate", str(quantized), "--against", str(language_gguf), *given)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[:14].strip() for line in lines[1:8]] == [
        "perplexity", "perplexity of", *["KL divergence,"] * 4, "same top token",
    ]  # fmt: skip
    assert "62 predictions scored, the second half of each sequence" in lines
    assert any("2 sequences of 64; the last" in line for line in lines)
    assert "(llama.cpp, 64 tokens at a time instead of 512), 62 predictions" in lines[-1]


def test_two_sources_of_the_same_logits(language_model: Path, language_gguf: Path) -> None:
    ids = np.random.default_rng(0).integers(4, 4096, (3, 40))
    torch_model, gguf = TorchModel(language_model), GgufModel(language_gguf)
    expected = list(torch_model.logits(ids))
    assert [e.shape for e in expected] == [(19, 4096)] * 3
    for other in (torch_model.again(ids), gguf.logits(ids), gguf.again(ids)):
        for found, wanted in zip(other, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=0.02, rtol=0)  # float16 keys and values
    assert gguf.words.encode("A man <|im_end|>") == torch_model.words.encode("A man <|im_end|>")
    talk = [{"role": "user", "content": "x"}]
    assert gguf.words.encode_chat(talk) == torch_model.words.encode_chat(talk)


def test_vocabularies(
    language_model: Path, language_gguf: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few rows may be missing, as in formats that drop what no token uses; no more."""
    whole = evaluate(language_gguf, language_model, dataset, seq_len=64, max_sequences=1)
    own = GgufModel.__init__

    def lacking(missing: int) -> None:
        def smaller(self: Any, path: Path, **options: Any) -> None:
            own(self, path, **options)
            self.vocabulary -= missing

        monkeypatch.setattr(GgufModel, "__init__", smaller)

    lacking(3)
    found = evaluate(language_gguf, language_model, dataset, seq_len=64, max_sequences=1)
    assert found.vocabulary == (4093, 4093, 4096)
    assert found.quality.figures.perplexity == pytest.approx(
        whole.quality.figures.perplexity, rel=1e-3
    )
    lacking(100)
    with pytest.raises(ModelError, match="knows 3,996 tokens and the original 4,096: they are not"):
        evaluate(language_gguf, language_model, dataset, seq_len=64, max_sequences=1)


def test_models_that_cannot_be_compared(
    language_model: Path, language_gguf: Path, dataset: Path, tmp_path: Path
) -> None:
    def asked(against: Path, length: int = 64, data: Path = dataset) -> None:
        evaluate(language_gguf, against, data, seq_len=length)

    with pytest.raises(
        CalibrationError, match="the artifact's context is 1024; give --seq-len 1024"
    ):
        asked(language_model, 2048)
    with pytest.raises(CalibrationError, match="at least 3 are needed for one to be scored"):
        asked(language_model, 2)
    with pytest.raises(ModelError, match="is no language model: give a Hugging Face directory"):
        asked(tmp_path)
    with pytest.raises(CalibrationError, match=r"texts are \.txt, \.jsonl, \.npz, not \.gguf"):
        asked(language_model, 64, language_gguf)
    other = Path(shutil.copytree(language_model, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    for change, message in (
        ({"model_type": "unheard_of"}, "cannot be loaded by transformers: "),
        ({"hidden_size": 128}, "cannot be loaded by transformers: "),
    ):
        other.chmod(0o755)
        (other / "config.json").chmod(0o644)
        (other / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ModelError, match=message) as found:
            asked(other)
        assert "\n" not in str(found.value)


def test_the_command_line_refuses(
    refuses: Refuses, here: Path, language_gguf: Path, dataset: Path
) -> None:
    given = ["--dataset", str(dataset), "--seq-len", "64"]
    message = refuses("evaluate", "tiny.py", "--against", "tiny.py", *given)
    assert message == "tiny.py is no bundle and no .gguf file"
    message = refuses("evaluate", str(language_gguf), "--against", "tiny.py", *given)
    assert message.startswith("tiny.py is no language model")
