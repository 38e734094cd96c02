"""Bundles for NVIDIA GPUs, built and proven where there is none; TVM finds none in these tests."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile
from qcompile.compiler.driver.check import verify
from qcompile.compiler.ir.errors import TargetError
from qcompile.runtime.errors import BundleError
from qcompile.targets.device import load_device
from qcompile.targets.tvm import cuda, libraries, stand_in
from qcompile.targets.tvm.emitter import EMITTER

FATBIN = struct.pack("<I", 0xBA55ED50)
JETSON = "jetson-orin-nano"
SAID = r"^nvcc, .*PATH$"
Make = Callable[..., qcompile.Bundle]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a machine with a GPU prove bundles as one without."""
    monkeypatch.setattr(cuda, "has_gpu", lambda: False)


@pytest.fixture(scope="session")
def make(build_for: Any, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function that builds ``Tiny`` once for a device and a precision."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    made: dict[tuple[str, str], qcompile.Bundle] = {}

    def build(device: str, precision: str) -> qcompile.Bundle:
        key = device, precision
        if key not in made:
            folder = tmp_path_factory.mktemp("cuda")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cuda, "has_gpu", lambda: False)
                made[key] = build_for(folder, device, precision=precision)
        return made[key]

    return build


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *(("cuda-sm80", "int8"), ("cuda-sm80", "fp16")),
        pytest.param("cuda-sm80", "fp32", marks=pytest.mark.slow),
        pytest.param("cuda-sm90", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_passes_its_gates_and_says_how(make: Make, device: str, precision: str) -> None:
    bundle = make(device, precision)
    assert bundle.passed
    manifest = bundle.manifest
    assert (manifest.format, manifest.precision) == ("tvm", precision)
    options = manifest.engine["options"]
    assert options["device"] == "cuda"
    known = load_device(device)
    assert options["cuda"]["arch"] == known.cuda_arch
    assert options["cuda"]["max_threads"] == known.max_threads
    assert "stands_in" not in options
    assert manifest.parity["by"] == stand_in.PROOF
    files = {
        "model.so",
        "check/model.so",
        "check/manifest.json",
        "lib/libtvm_runtime_cuda.so",
        "run",
    }
    assert files <= set(manifest.files)
    if precision == "int8":
        rows = [row for row in manifest.parity["engine"] if row["sqnr_db"] is None]
        assert len(rows) >= 7, "each integer op is compared alone"
        assert max(row["largest"] for row in rows) <= 1
    data = (bundle.path / "model.so").read_bytes()
    assert data.count(FATBIN) == 1
    assert b"__global__" not in data
    assert FATBIN not in (bundle.path / "check" / "model.so").read_bytes()


def test_the_stand_in_is_near_the_floats(make: Make, make_images: Any, tiny_outputs: Any) -> None:
    x = make_images(16, 9)
    expected = tiny_outputs(x)
    for precision, least in (("int8", 25), ("fp16", 50)):
        bundle = make("cuda-sm80", precision)
        options = bundle.manifest.engine["options"]
        engine = EMITTER.engine_class()
        assert engine is not None
        given = x.astype(bundle.manifest.inputs[0].dtype)
        (found,) = engine(bundle.path / "model.so", options, 1).run([given])
        noise = np.square(expected - found.astype(np.float64)).sum()
        assert 10 * np.log10(np.square(expected).sum() / noise) > least


@pytest.fixture
def hidden() -> dict[str, str]:
    """An environment that hides a GPU from CUDA, if there is one."""
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}


def test_python_refuses_without_a_gpu(make: Make) -> None:
    import tvm

    if tvm.cuda(0).exist:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BundleError, match=r"TVM finds no NVIDIA GPU, .*nvidia-smi.*CPU$") as caught:
        qcompile.load(make("cuda-sm80", "int8").path)
    assert "\n" not in str(caught.value)


def test_the_program_refuses_without_a_gpu(make: Make, hidden: dict[str, str]) -> None:
    program = make("cuda-sm80", "int8").path / "run"
    done = subprocess.run([program], capture_output=True, text=True, env=hidden)
    assert done.returncode == 2, done.stdout
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "CUDA cannot be used (" in done.stderr or "CUDA finds no GPU" in done.stderr


def test_the_program_runs_what_stands_in(make: Make, tmp_path: Path) -> None:
    bundle = make("cuda-sm80", "int8").path
    files = ["--input", bundle / "vectors" / "inputs.npz", "--output", tmp_path / "o.npz"]
    command = [bundle / "run", bundle / "check", *files, "--calls", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "o.npz") as found, np.load(bundle / "vectors/outputs.npz") as said:
        assert found.keys() == said.keys()
        for name, value in said.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_verify_uses_what_stands_in(make: Make, tmp_path: Path) -> None:
    copy = tmp_path / "copy.qc"
    shutil.copytree(make("cuda-sm80", "int8").path, copy, symlinks=True)
    checks = verify(copy)
    assert all(check.passed for check in checks)
    (engine,) = (check for check in checks if check.check == "engine")
    assert "no GPU here" in engine.measured
    file = copy / "check" / "model.so"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"check/model\.so"):
        verify(copy)


@pytest.mark.parametrize("precision", ["w8a16", "int4", "fp8"])
def test_other_precisions_are_refused(build_for: Any, tmp_path: Path, precision: str) -> None:
    with pytest.raises(TargetError, match=r"int8.*fp16.*fp32") as caught:
        build_for(tmp_path, "cuda-sm80", precision=precision)
    assert precision in str(caught.value)
    assert not (tmp_path / "tiny.qc").exists()


@pytest.fixture
def _nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(libraries.WHEELS, raising=False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")


@pytest.mark.usefixtures("_nothing")
def test_all_that_is_missing_for_a_jetson_is_named_at_once() -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    with pytest.raises(TargetError) as caught:
        EMITTER.check_machine(load_device(JETSON))
    said = str(caught.value)
    assert "\n" not in said
    for part in (
        *("apt-get install g++-aarch64-linux-gnu", "apt-get install qemu-user"),
        *("get the CUDA toolkit, 12 or later", "no sources of libtvm_runtime_cuda.so"),
        *("pip download", libraries.WHEELS),
    ):
        assert part in said, part


@pytest.mark.usefixtures("_nothing")
def test_without_nvcc_nothing_else_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    monkeypatch.setattr(libraries, "compiler", lambda arch: "g++")
    with pytest.raises(TargetError, match=SAID):
        EMITTER.check_machine(load_device("cuda-sm80"))
    EMITTER.check_machine(load_device("x86-avx2"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_jetson(make: Make, precision: str) -> None:
    if not os.environ.get(libraries.WHEELS):
        pytest.skip(f"{libraries.WHEELS} names no folder with TVM's wheels for aarch64")
    bundle = make(JETSON, precision)
    assert bundle.passed
    assert bundle.manifest.engine["options"]["cuda"]["arch"] == "sm_87"
    assert (bundle.path / "lib" / libraries.CUDA_LIBRARY).read_bytes()[18:20] == b"\xb7\x00"
    assert all(check.passed for check in verify(bundle.path))
