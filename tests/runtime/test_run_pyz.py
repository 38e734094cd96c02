"""``run.pyz`` needs numpy and the engine alone, as on a device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

# What a device has: numpy and onnxruntime with all that onnxruntime itself asks for.
BLOCKER = """
import sys
ALLOWED = {"numpy", "onnxruntime", "flatbuffers", "google", "packaging", "coloredlogs"}
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in ALLOWED | {"qcompile", "__main__"}:
            return None
        raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
import runpy
sys.path = [p for p in sys.path if not p.endswith("/src")]
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
Pyz = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def pyz(built: Path, tmp_path: Path) -> Pyz:
    """Run the bundle's own runtime where nothing else can be imported."""

    def run(*arguments: str | Path, bundle: Path = built) -> subprocess.CompletedProcess:
        command = [sys.executable, "-P", "-c", BLOCKER, bundle / "run.pyz", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    return run


def test_it_checks_the_vectors(pyz: Pyz, built: Path) -> None:
    done = pyz()
    assert done.stderr == ""
    assert done.returncode == 0
    assert done.stdout.startswith("ok  output: equal, needs ")
    assert (built / "run.pyz").stat().st_size < 100_000


def test_it_is_the_runtime_of_the_bundle(built: Path) -> None:
    """Not an installed qcompile, and without site-packages numpy is named."""
    command = [sys.executable, "-S", "-I", built / "run.pyz"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: this needs the package 'numpy'; run: pip install numpy\n"


def test_it_runs_inputs(pyz: Pyz, tmp_path: Path) -> None:
    image = np.ones((5, 3, 8, 8), np.float32)
    np.savez(tmp_path / "x.npz", image=image, extra=np.ones((5, 4), np.float32))
    done = pyz("--input", "x.npz", "-o", "y.npz")
    assert done.stderr == ""
    assert done.stdout == "output: float32[5, 4]\n"
    with np.load(tmp_path / "y.npz") as found:
        assert found["output"].shape == (5, 4)
    assert pyz("--input", "x.npz").stdout.count("[") > 5


def test_it_measures(pyz: Pyz) -> None:
    found = json.loads(pyz("--bench").stdout)
    assert 0 < found["p50"] <= found["p99"]


def test_what_is_wrong_is_one_sentence(pyz: Pyz, built: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=np.ones((5, 3, 8, 8)))
    (tmp_path / "cut.npz").write_bytes(b"PK\3\4")
    spoiled = Path(shutil.copytree(built, tmp_path / "spoiled.qc"))
    (spoiled / "model.onnx").write_bytes(b"")
    for done, message in (
        (pyz("--input", "x.npz"), "inputs do not fit the model: got image: float64[5, 3, 8, 8]"),
        (pyz("--input", "cut.npz"), "cut.npz cannot be read"),
        (pyz("--input", "no.npz"), "no.npz cannot be read"),
        (pyz(bundle=spoiled), "was changed after it was built: model.onnx has 0 bytes"),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert message in done.stderr


def test_a_wrong_answer_fails(pyz: Pyz, built: Path, tmp_path: Path) -> None:
    from qcompile.compiler.driver import write
    from qcompile.runtime.manifest import read

    spoiled = Path(shutil.copytree(built, tmp_path / "spoiled.qc"))
    np.savez(spoiled / "vectors" / "outputs.npz", output=np.zeros((16, 4), np.float32))
    info = write.file_table(spoiled)["vectors/outputs.npz"]
    manifest = read(spoiled, check_files=False)
    manifest.files["vectors/outputs.npz"] = info  # type: ignore[index]
    write.seal(spoiled, manifest)
    done = pyz(bundle=spoiled)
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED  output: -inf dB, needs ")
