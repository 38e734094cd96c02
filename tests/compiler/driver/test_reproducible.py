"""The same inputs and versions give the same bytes: in other processes, with other threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.compiler.driver.write import file_table

ROOT = Path(__file__).parents[3]


def build(model: Path, folder: Path, *, threads: int, seed: str) -> dict[str, str]:
    """Build in a process of its own; return the digest of every file."""
    folder.mkdir(parents=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": seed}
    command = [sys.executable, "-m", "qcompile", str(model), "--target", "x86-avx512-vnni"]
    done = subprocess.run([*command, "-o", "m.qc"], cwd=folder, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return {name: info.sha256 for name, info in file_table(folder / "m.qc").items()}


def test_a_tiny_model(here: Path) -> None:
    first = build(here / "tiny.py", here / "a", threads=1, seed="1")
    second = build(here / "tiny.py", here / "elsewhere" / "b", threads=2, seed="2")
    assert first == second
    assert set(first) >= {"manifest.json", "model.onnx", "run.pyz", "vectors/outputs.npz"}


@pytest.mark.slow
def test_mobilenet_v2(tmp_path: Path) -> None:
    model = ROOT / "examples" / "mobilenet_v2.py"
    first = build(model, tmp_path / "a", threads=1, seed="1")
    assert first == build(model, tmp_path / "b", threads=2, seed="2")
