"""The CMake project: configured, built, its vectors run by ctest; a damaged vector fails them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qcompile.runtime.vectors import read_arrays, save_arrays
from qcompile.targets.device import load_device

pytestmark = pytest.mark.slow
Bundle = Callable[[str], Path]
TARGET = "x86-avx2"


@pytest.fixture(scope="module")
def kiosk(app: Path, bundle: Bundle) -> Path:
    """The project's build folder."""
    if missing := [program for program in ("cmake", "ctest", "g++") if not shutil.which(program)]:
        pytest.skip(f"needs {', '.join(missing)}")
    if "avx2" not in load_device("host").isa:
        pytest.skip(f"a library for {TARGET} does not run on this CPU")
    tvm_ffi = pytest.importorskip("tvm_ffi", reason="apache-tvm-ffi is not installed")
    for model in ("digits", "sounds"):
        bundle(f"{model}-{TARGET}")
    folder = app / "cmake" / "build"
    headers = f"-DTVM_FFI={Path(tvm_ffi.__file__).parent}"
    run("cmake", "-S", folder.parent, "-B", folder, headers)
    run("cmake", "--build", folder)
    return folder


def run(*command: str | Path, code: int = 0) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def ctest(folder: Path, code: int) -> str:
    return run("ctest", "--test-dir", folder, "--output-on-failure", code=code)


def test_the_vectors_pass(kiosk: Path) -> None:
    said = ctest(kiosk, 0)
    assert "digits.vectors" in said
    assert "sounds.vectors" in said
    assert "100% tests passed, 0 tests failed out of 2" in said


@pytest.mark.parametrize("damage", ["another number", "another byte"])
def test_a_damaged_vector_fails(kiosk: Path, bundle: Bundle, damage: str) -> None:
    file = bundle(f"digits-{TARGET}") / "vectors" / "outputs.npz"
    whole = file.read_bytes()
    if damage == "another number":
        arrays = read_arrays(file)
        arrays["output"][3, 4] += 1
        save_arrays(file, arrays)
    else:
        file.write_bytes(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:])
    try:
        said = ctest(kiosk, 8)
    finally:
        file.write_bytes(whole)
    assert ("FAILED  output" if damage == "another number" else "its checksum differs") in said
    assert "50% tests passed, 1 tests failed out of 2" in said
    assert "digits.vectors" in said.partition("The following tests FAILED")[2]


def test_the_installed_app_needs_nothing_else(kiosk: Path, bundle: Bundle, tmp_path: Path) -> None:
    run("cmake", "--install", kiosk, "--prefix", tmp_path / "usr")
    vectors = bundle(f"digits-{TARGET}") / "vectors"
    np.save(tmp_path / "digits.npy", read_arrays(vectors / "inputs.npz")["image"])
    hidden = kiosk.rename(kiosk.with_name("hidden"))
    bundles = kiosk.parents[1] / "build"
    elsewhere = bundles.rename(bundles.with_name("elsewhere"))
    try:
        program, model = tmp_path / "usr/bin/kiosk", tmp_path / "usr/share/kiosk/digits"
        found = run(program, model, tmp_path / "digits.npy").split()
    finally:
        hidden.rename(kiosk)
        elsewhere.rename(bundles)
    expected = read_arrays(vectors / "outputs.npz")["output"].argmax(1)
    assert found == [str(digit) for digit in expected]


def test_without_bundles_it_says_what_to_do(app: Path, kiosk: Path, tmp_path: Path) -> None:
    command = ["cmake", "-S", app / "cmake", "-B", tmp_path, f"-DBUNDLES={tmp_path}", "-DTVM_FFI=/"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    assert done.returncode == 1
    assert "There is no bundle" in done.stderr
    assert "run `qcompile build` first" in " ".join(done.stderr.split())
