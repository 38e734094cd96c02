"""Language models on the command line: plans, refusals, and bundles under every verb."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import qcompile.compiler.frontend.load as front_end
from qcompile.compiler.driver import BuildOptions, build
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import ModelError

pytest.importorskip("llama_cpp")
Run = Callable[..., Result]
Refuses = Callable[..., str]


@pytest.fixture
def model(tiny_llama: Path, tiny_source: Source, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that need not be exported again for each test."""
    monkeypatch.setattr(front_end, "load", lambda _: tiny_source)
    return tiny_llama


@pytest.fixture(scope="module")
def q8(tiny_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, which no test may change."""
    folder = tmp_path_factory.mktemp("q8") / "tiny.qc"
    return build(
        tiny_source, folder, BuildOptions(target="apple-m2", format="gguf", precision="q8_0")
    ).path


def test_a_plan_as_a_table(run: Run, here: Path, model: Path) -> None:
    result = run(model, "--target", "apple-m2", "--dry-run")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "apple-m2: gguf, q4_k_m"
    (row,) = [line.split() for line in lines if line.startswith("blk.0.ffn_down.weight ")]
    assert row[1:4] == ["256", "x", "288"]
    (note,) = [line for line in lines if line.startswith("note: blk.0.ffn_down.weight")]
    assert f"is stored as {row[4]}, not Q6_K" in result.stdout
    assert note
    assert lines[-2].startswith("artifact: ")
    assert lines[-1].startswith("a token: at least ")
    assert lines[-1].endswith(" ms, modelled from the memory's bandwidth")
    assert list(here.iterdir()) == [here / "tiny.py"]


def test_a_plan_as_data(run: Run, here: Path, model: Path, q8: Path) -> None:
    result = run(model, "--target", "apple-m2", "-p", "q8_0", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    assert plan["artifact_bytes"] == (q8 / "model.gguf").stat().st_size
    assert {row["format"] for row in plan["tensors"]} == {"F32", "Q8_0"}
    assert sum(row["bytes"] for row in plan["tensors"]) < plan["artifact_bytes"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--tensor-type", "attn_q"], "'attn_q' is not REGEX=TYPE"),
        (["--tensor-type", "attn_q=q9_k"], "'q9_k' is no type of GGUF"),
        (["--tensor-type", "(=q8_0"], "'(' is no regular expression"),
        (["--tensor-type", "unheard=q8_0"], "no tensor that can be quantized has a name in which"),
        (["--ignore", "unheard"], "the model has no weight unheard"),
        (["--format", "onnx"], "onnx has no form for a language model's directory"),
        (["--granularity", "per-channel"], "gguf takes its formats from the mix"),
        (["-p", "int8"], "apple-m2 has no precision 'int8' in gguf; it has: f32, f16"),
        (["--calibrate", "random"], "is calibrated on texts"),
        (["--calibrate", "nowhere.txt"], "nowhere.txt does not exist"),
        (["--calibrate", "tiny.py"], "texts are .txt, .jsonl, .npz, not .py"),
        (["--imatrix", "nowhere"], "nowhere does not exist"),
        (["--imatrix", "tiny.py"], "tiny.py"),
        (["--max-drop", "1"], "has no evaluate()"),
        (["--rounding", "adaround"], "rounds with nearest or gptq"),
    ],
)
def test_options_that_do_not_fit(
    refuses: Refuses, here: Path, model: Path, given: list[str], message: str
) -> None:
    assert message in refuses(model, "--target", "apple-m2", *given)


def test_directories_that_are_no_models(refuses: Refuses, here: Path) -> None:
    (here / "bare").mkdir()
    assert "is no model: it has no config.json" in refuses("bare", "--target", "apple-m2")
    (here / "bare" / "config.json").write_text("{")
    assert "bare/config.json is not JSON" in refuses("bare", "--target", "apple-m2")
    assert "gguf stores language models: give a Hugging Face directory, not tiny.py" in (
        refuses("tiny.py", "--target", "host", "--format", "gguf")
    )


def test_verify(run: Run, here: Path, model: Path, q8: Path) -> None:
    result = run("verify", q8, "--against", model, "--json")
    assert result.exit_code == 0, result.output
    rows = {row["check"]: row for row in json.loads(result.stdout)["checks"]}
    assert rows["model"]["measured"] == "the model it was built from"
    assert rows["PyTorch: logits"]["passed"]
    assert rows["vectors: logits"]["measured"] == "equal"


def test_inspect(run: Run, q8: Path) -> None:
    result = run("inspect", q8, "--limit", "2")
    assert result.exit_code == 0, result.output
    assert "input input_ids: int64[batch, sequence]" in result.stdout
    assert "Q8_0" in result.stdout
    assert (
        result.stdout.count("without calibration data the errors of all inputs count alike in Q8_0")
        == 1
    )


@pytest.mark.parametrize("quiet", [False, True])
def test_notes_come_before_the_work(
    run: Run, here: Path, model: Path, monkeypatch: pytest.MonkeyPatch, quiet: bool
) -> None:
    def work(*given: object) -> None:
        raise ModelError("that was all")

    monkeypatch.setattr(
        importlib.import_module("qcompile.compiler.driver.build"), "run_passes", work
    )
    result = run(model, "--target", "apple-m2", *(["--json"] if quiet else []))
    assert result.exit_code == 2
    if quiet:
        assert result.stderr == ""
        return
    first, second, last = result.stderr.splitlines()
    assert first.startswith("note: blk.0.ffn_down.weight is stored as ")
    assert second.startswith(
        "note: without calibration data the errors of all inputs count alike in "
    )
    assert last == "error: that was all"


def test_bench_needs_no_other_engine(
    run: Run, q8: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3] / 'src'}")
    result = run("bench", q8, "--runs", "10", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["engine"].startswith("llama_cpp ")


def test_a_gpu_is_refused(refuses: Refuses, model: Path) -> None:
    assert "cuda-sm80 is sm_80" in refuses(model, "--target", "cuda-sm80", "--dry-run")
