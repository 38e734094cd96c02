"""Builds of one model share the process that loaded it, and nothing that one of them does reaches another."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.matrix import processes
from qcompile.compiler.matrix.build import build
from qcompile.compiler.matrix.read import read

THREE = """
[models.good]
path = "models/good.py"
[matrix]
targets = ["x86-avx512-vnni"]
precisions = ["int8", "fp16", "fp32"]
"""
TRAINED = """
layer = nn.Linear(WIDTH, 2)
layer(torch.randn(64, WIDTH)).square().sum().backward()
torch.set_num_threads(2)
(torch.randn(600, 600) @ torch.randn(600, 600)).sum()
"""
INT8, FP16, FP32 = (f"good-x86-avx512-vnni-{p}" for p in ("int8", "fp16", "fp32"))


@pytest.fixture
def three(small_project: Any) -> Any:
    (small_project.folder / "qcompile.toml").write_text(THREE)
    return small_project


@pytest.fixture
def model_file(three: Any) -> Callable[[str, str], None]:
    """Change the text of the model."""

    def change(before: str, after: str) -> None:
        file = Path(three.folder / "models" / "good.py")
        assert before in file.read_text()
        file.write_text(file.read_text().replace(before, after))

    return change


@pytest.mark.parametrize(
    ("crash", "error"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
        (
            "print('enough', file=sys.stderr, flush=True); os._exit(3)",
            "its process ended with code 3: enough",
        ),
    ],
)
def test_a_build_that_crashes_does_not_stop_the_others(
    three: Any, model_file: Callable[[str, str], None], crash: str, error: str
) -> None:
    model_file("def calibration():", f"def calibration():\n    import os, signal, sys; {crash}")
    rows = three.results("build", code=2)
    assert rows[INT8]["error"].startswith(error)
    assert [rows[name]["result"] for name in (INT8, FP16, FP32)] == ["failed", "built", "built"]


def test_a_model_that_was_trained_and_used_all_cores(
    three: Any, model_file: Callable[[str, str], None]
) -> None:
    model_file("\n\ndef model():", f"{TRAINED}\n\ndef model():")
    assert {row["result"] for row in three.results("build").values()} == {"built"}


@pytest.mark.slow
def test_the_lock_does_not_depend_on_what_was_built_before(three: Any) -> None:
    lock = three.folder / "qcompile.lock"
    three.run("build")
    first = lock.read_bytes(), three.content("build")
    for arguments in (("--jobs", "3"), ("--only", FP32, "--no-cache")):
        three.run("build", "--force", *arguments)
        assert (lock.read_bytes(), three.content("build")) == first
    builds = json.loads(first[0])["builds"]
    assert "models/data/0.txt" in builds[INT8]["files"]
    assert "models/data/0.txt" not in builds[FP32]["files"]


def test_another_build_finds_the_stages(three: Any) -> None:
    """Also those that are kept in the project's folder, where they are no inputs."""
    caches = ("--cache-dir", "kept", "--remote-cache", f"file://{three.folder}/shared")
    three.run("build", *caches)
    rows = three.results("build", "--force", *caches)
    assert {name: row["shared"] for name, row in rows.items()} == {
        INT8: ["onnx", "quantize"], FP16: ["onnx"], FP32: ["onnx"]
    }  # fmt: skip
    assert {row["error"] for row in rows.values()} == {""}
    assert {row["result"] for row in three.results("build").values()} == {"up to date"}


def test_a_damaged_cache_is_said_and_made_again(three: Any) -> None:
    three.run("build", "--cache-dir", "../cache")
    clean = three.content()
    (entry,) = (three.folder.parent / "cache" / "quantize").iterdir()
    entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    _, said = three.run("build", "--force", "--only", INT8, "--cache-dir", "../cache")
    assert f"the cache's entry quantize/{entry.name} is damaged: it is made again" in said
    assert three.content() == clean


def test_a_cache_that_cannot_be_written(three: Any) -> None:
    (three.folder.parent / "file").touch()
    _, said = three.run("build", "--only", INT8, "--cache-dir", "../file/cache")
    assert "file/cache cannot be written (Not a directory): nothing is kept" in said


@pytest.mark.slow
def test_where_processes_cannot_be_forked(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    three.run("build")
    forked = three.content("build")
    program = "import qcompile.compiler.matrix.worker as w; w.CAN_FORK = False; w.main()"
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-P", "-c", program))
    monkeypatch.chdir(three.folder)
    outcomes = build(read(Path("qcompile.toml")), force=True, jobs=2)
    assert [outcome.result for outcome in outcomes] == ["built"] * 3
    assert three.content("build") == forked
