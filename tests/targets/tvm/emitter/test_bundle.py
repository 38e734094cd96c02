"""A bundle with a library of TVM, built and run here."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qcompile
from qcompile.runtime.vectors import read_arrays, save_arrays
from qcompile.targets.device import load_device

X86 = "x86-avx512-vnni"


def test_the_bundle_passes_its_gates(bundle: qcompile.Bundle) -> None:
    assert bundle.passed
    manifest = bundle.manifest
    assert (manifest.format, manifest.precision, manifest.artifact) == ("tvm", "int8", "model.so")
    assert manifest.engine["name"] == "tvm"
    options = manifest.engine["options"]
    assert options["arch"] == "x86_64"
    assert options["llvm_cpu"] == "cascadelake"
    assert options["cpu_features"] == list(load_device(X86).isa)
    assert set(manifest.parity["engine"][0]) >= {"name", "differing", "largest"}
    names = {row["name"] for row in manifest.parity["engine"]}
    assert len(names) >= 7, "each integer op is compared alone"
    assert max(row["largest"] for row in manifest.parity["engine"] if row["sqnr_db"] is None) <= 1


def test_python_and_the_program_compute_the_same(
    bundle: qcompile.Bundle, make_images: Any, tmp_path: Path
) -> None:
    session = qcompile.load(bundle.path)
    for count in (1, 3, 7):
        x = make_images(count, 5)
        found = session.run({"image": x})
        save_arrays(tmp_path / "in.npz", {"image": x})
        files = ["--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz", "--calls", "0"]
        done = subprocess.run([bundle.path / "run", *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        written = read_arrays(tmp_path / "out.npz")
        assert written.keys() == found.keys()
        for name, value in found.items():
            np.testing.assert_array_equal(written[name], value)


def test_the_codes_are_near_the_floats(
    bundle: qcompile.Bundle, make_images: Any, tiny_outputs: Any
) -> None:
    x = make_images(32, 9)
    expected = tiny_outputs(x)
    (found,) = qcompile.load(bundle.path).run({"image": x}).values()
    noise = np.square(expected - found).sum()
    assert 10 * np.log10(np.square(expected).sum() / noise) > 25


def test_the_library_has_the_instruction_and_no_trace_of_this_machine(
    bundle: qcompile.Bundle,
) -> None:
    data = (bundle.path / "model.so").read_bytes()
    for word in (b"/home", b"/tmp", b".py", str(Path(__file__).parent).encode()):
        assert word not in data
    if objdump := shutil.which("objdump"):
        text = subprocess.run([objdump, "-d", bundle.path / "model.so"], capture_output=True).stdout
        assert text.count(b"vpdpbusd") >= 10


PROGRAM = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from conftest import build
build(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_equal_bytes_from_two_processes(bundle: qcompile.Bundle, tmp_path: Path) -> None:
    found = {hashlib.sha256((bundle.path / "model.so").read_bytes()).hexdigest()}
    for seed in ("1", "2"):
        folder = tmp_path / f"folder {seed}"
        folder.mkdir()
        command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(folder)]
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TMPDIR": str(folder)}
        subprocess.run(command, env=environment, cwd=folder, check=True)
        data = (folder / "tiny.qc" / "model.so").read_bytes()
        found.add(hashlib.sha256(data).hexdigest())
    assert len(found) == 1


def test_a_library_in_the_place_of_another_is_the_new_one(tmp_path: Path) -> None:
    """The first stays loaded while the second is built where it was."""
    x = np.ones((2, 4), np.float32)
    found = []
    sessions = []
    for factor in (1.0, 3.0):
        layer = torch.nn.Linear(4, 2, bias=False).eval()
        torch.nn.init.constant_(layer.weight, factor)
        example = {"input": torch.from_numpy(x)}
        options = {"target": "host", "format": "tvm", "precision": "fp32", "force": True}
        bundle = qcompile.compile(layer, example, output=tmp_path / "a.qc", **options)
        sessions.append(qcompile.load(bundle.path))
        found.append(next(iter(sessions[-1].run({"input": x}).values())))

    np.testing.assert_allclose(found[0], np.full((2, 2), 4.0))
    np.testing.assert_allclose(found[1], np.full((2, 2), 12.0))
