"""What each verb prints and returns when all is well."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

Run = Callable[..., Result]
TARGET = ("--target", "x86-avx512-vnni")


def data_of(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


@pytest.fixture
def ok(run: Run) -> Callable[..., str]:
    def check(*arguments: str | Path) -> str:
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == ""
        return result.stdout

    return check


def test_build_is_the_default_verb(here: Path, ok: Callable[..., str]) -> None:
    text = ok("tiny.py", *TARGET)
    assert "tiny.qc" in text
    assert "all passed" in text
    names = sorted(p.name for p in (here / "tiny.qc").rglob("*"))
    assert names == [
        "inputs.npz", "manifest.json", "model.onnx", "outputs.npz", "reference.npz", "run.pyz",
        "vectors",
    ]  # fmt: skip
    assert sorted(p.name for p in here.iterdir()) == ["tiny.py", "tiny.qc"]


def test_build_as_data(here: Path, run: Run) -> None:
    found = data_of(run("build", "tiny.py", *TARGET, "-o", "deep/down/x.qc", "--json"))
    assert found["bundle"] == "deep/down/x.qc"
    assert found["passed"]
    assert found["manifest"]["calibration"]["source"] == "calibration()"
    assert found["manifest"]["calibration"]["samples"] == 32
    assert set(found["manifest"]["quality"]) == {"top1"}
    assert (here / "deep/down/x.qc/manifest.json").is_file()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "w8a16"])
def test_other_precisions(here: Path, run: Run, precision: str) -> None:
    arguments = ["tiny.py", *TARGET, "-p", precision, "-o", "x.qc", "--min-sqnr", "30", "--json"]
    manifest = data_of(run(*arguments))["manifest"]
    assert manifest["precision"] == precision
    assert manifest["inputs"][0]["dtype"] == "float32"
    assert data_of(run("verify", "x.qc", "--against", "tiny.py", "--json"))["passed"]


def test_float_needs_no_data(here: Path, ok: Callable[..., str]) -> None:
    text = (here / "tiny.py").read_text()
    (here / "tiny.py").write_text(text.replace('return {"input": images(32, 2)}', "1 / 0"))
    assert "all passed" in ok("tiny.py", *TARGET, "-p", "fp32")


@pytest.mark.parametrize("data", ["x.npz", "folder", "random"])
def test_calibration_data(here: Path, run: Run, data: str) -> None:
    images = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    np.savez(here / "x.npz", input=images)
    (here / "folder").mkdir()
    for index, image in enumerate(images):
        np.save(here / "folder" / f"{index:03}.npy", image)
    arguments = ["tiny.py", *TARGET, "--calibrate", data, "--num-samples", "24", "--json"]
    calibration = data_of(run(*arguments))["manifest"]["calibration"]
    assert calibration["source"] == data
    assert calibration["samples"] == 24


def test_a_module_and_a_program(here: Path, run: Run, ok: Callable[..., str]) -> None:
    (here / "package").mkdir()
    (here / "package" / "__init__.py").write_text("")
    (here / "tiny.py").rename(here / "package" / "net.py")
    assert "model.qc" in ok("package.net:model", *TARGET)

    import torch

    sys.path.insert(0, str(here))
    try:
        from package.net import inputs, model
    finally:
        sys.path.remove(str(here))
    torch.export.save(torch.export.export(model(), (), inputs()), here / "saved.pt2")
    ok("saved.pt2", *TARGET, "-p", "fp32")
    assert data_of(run("verify", "saved.qc", "--against", "saved.pt2", "--json"))["passed"]


def test_a_model_file_that_imports_its_neighbour_late(here: Path, ok: Callable[..., str]) -> None:
    text = (here / "tiny.py").read_text().replace("import torch\n", "", 1)
    (here / "neighbour_of_tiny.py").write_text("import torch")
    text = text.replace("def model():", "def model():\n    from neighbour_of_tiny import torch")
    header = "from __future__ import annotations\nfrom dataclasses import dataclass\nimport torch\n"
    config = "@dataclass\nclass Config:\n    width: int = 8\n"
    (here / "tiny.py").write_text(header + config + text)
    assert "artifact: about" in ok("tiny.py", *TARGET, "--dry-run")


def test_dry_run_does_no_work(here: Path, run: Run, ok: Callable[..., str]) -> None:
    text = (here / "tiny.py").read_text()
    text = text.replace('return {"input": images(32, 2)}', "1 / 0").replace(
        "logits = ", "1 / 0; logits = "
    )
    (here / "tiny.py").write_text(text)
    shown = ok("tiny.py", *TARGET, "--dry-run")
    assert "0.weight" in shown
    assert "uint8" in shown
    assert "peak memory: about" in shown
    assert "all of it runs fast there" in shown
    plan = data_of(run("tiny.py", *TARGET, "--dry-run", "--json"))
    assert {n["name"] for n in plan["nodes"] if n["bytes"]} == {"0.weight", "5.weight"}
    assert [p.name for p in here.iterdir()] == ["tiny.py"]
    slow = ok("tiny.py", "--target", "raspberry-pi-4", "--dry-run")
    assert "not fast there:\n  1 x " in slow


def test_dump_ir(here: Path, ok: Callable[..., str]) -> None:
    ok("tiny.py", *TARGET, "--dump-ir", "ir/deep")
    files = sorted(p.name for p in (here / "ir/deep").rglob("*.txt"))
    assert any("fold-batch-norm" in name or "fold_batch_norm" in name for name in files)
    assert any("quantize" in name for name in files)
    assert all("conv2d" in p.read_text() for p in (here / "ir/deep").rglob("*.txt"))


def test_verify(built: Path, run: Run, ok: Callable[..., str]) -> None:
    text = ok("verify", built)
    assert "FAILED" not in text
    assert "5 files as in the manifest" in text
    against = ok("verify", built, "--against", built.parent / "tiny.py")
    assert "the model it was built from" in against
    assert "PyTorch: output" in against
    assert run("verify", built, "--against", built.parent / "tiny.py", "--min-sqnr", "200",
               "--json").exit_code == 1  # fmt: skip


def test_verify_against_another_model(
    here: Path, built: Path, run: Run, refuses: Callable[..., str]
) -> None:
    tiny = (here / "tiny.py").read_text()
    (here / "tiny.py").write_text(tiny.replace("manual_seed(0)", "manual_seed(1)"))
    result = run("verify", built, "--against", "tiny.py", "--json")
    assert result.exit_code == 1
    failed = [c["check"] for c in json.loads(result.stdout)["checks"] if not c["passed"]]
    assert failed == ["model", "PyTorch: output"]
    (here / "tiny.py").write_text(tiny.replace("3, 8, 8, gen", "3, 9, 8, gen"))
    assert refuses("verify", built, "--against", "tiny.py") == (
        "tiny.py takes input: float32[batch, 3, 9, 8]; the bundle takes "
        "input: float32[batch, 3, 8, 8]: it was built from another model"
    )
    (here / "tiny.py").write_text(tiny.replace("8, 4)", "8, 5)"))
    assert "tiny.py gives output: float32[batch, 5]" in refuses(
        "verify", built, "--against", "tiny.py"
    )


def test_inspect(built: Path, run: Run, ok: Callable[..., str]) -> None:
    text = ok("inspect", built)
    assert "input input: float32[batch, 3, 8, 8]" in text
    assert "output output: float32[batch, 4]" in text
    assert "0.weight" in text
    assert data_of(run("inspect", built, "--json"))["schema"] == 3
    one = ok("inspect", built, "--limit", "1")
    assert ("0.weight" in one) != ("5.weight" in one)


def test_bench(built: Path, run: Run, ok: Callable[..., str]) -> None:
    text = ok("bench", built, "--runs", "50")
    assert "p50" in text
    found = data_of(run("bench", built, "--runs", "50", "--json"))
    assert 0 < found["p50"] <= found["p90"] <= found["p99"]
    assert 0 < found["base_rss_mib"] <= found["peak_rss_mib"] < 200  # not what pytest itself takes
    assert found["engine"].startswith("onnxruntime 1.")


def test_targets(run: Run, ok: Callable[..., str], here: Path) -> None:
    assert "raspberry-pi-4" in ok("targets")
    assert {"host", "x86-avx512-vnni"} <= {d["name"] for d in data_of(run("targets", "--json"))}
    text = ok("targets", "raspberry-pi-4")
    assert "merely runs" in text
    assert "https://" in text
    assert data_of(run("targets", "host", "--json"))["format"] == "onnx"


def test_passes(run: Run, ok: Callable[..., str]) -> None:
    assert "fold-batch-norm" in ok("passes")
    assert "Before:" in ok("passes", "fold-batch-norm")
    assert data_of(run("passes", "fold-batch-norm", "--json"))["name"] == "fold-batch-norm"
    assert "fold-batch-norm" in data_of(run("passes", "--json"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(ok: Callable[..., str], shell: str) -> None:
    assert "_QCOMPILE_COMPLETE" in ok("completion", shell)


@pytest.mark.parametrize(
    ("words", "found"),
    [("qcompile ", "verify"), ("qcompile tiny.py --target rasp", "raspberry-pi-5")],
)
def test_what_is_completed(words: str, found: str, run: Run) -> None:
    from click.testing import CliRunner

    from qcompile.compiler.cli import cli

    words_env = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    env = {**words_env, "_QCOMPILE_COMPLETE": "bash_complete"}
    result = CliRunner(env=env).invoke(cli, prog_name="qcompile")
    assert found in result.stdout


def test_help_and_version(ok: Callable[..., str]) -> None:
    assert "qcompile model.py --target raspberry-pi-5" in ok("--help")
    assert "--calibrate" in ok("build", "--help")
    assert ok("--version").startswith("qcompile, version ")


def test_help_is_quick() -> None:
    """``qcompile --help`` and an unknown verb's help must not import torch."""
    program = (
        "import sys; from click.testing import CliRunner; from qcompile.compiler.cli import cli;"
        "[CliRunner().invoke(cli, [v, '--help']) for v in ('build', 'verify', 'targets')];"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
