"""Each error of the native program: exit code 2 and one sentence that says what and what to do."""

from __future__ import annotations

import json
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import FILE
from qcompile.runtime.vectors import read_arrays, save_arrays
from qcompile.targets.tvm import native


def refused(bundle: Path, *options: str) -> str:
    """Return the error after checking that it is one line, alone, with exit code 2."""
    result = subprocess.run(
        [bundle / "run", *options], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    return result.stderr


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads((bundle / FILE).read_text())
    change(data)
    (bundle / FILE).write_text(json.dumps(data))


def image(bundle: Path) -> np.ndarray[Any, Any]:
    return read_arrays(bundle / "vectors" / "inputs.npz")["image"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere.qc"], "nowhere.qc/manifest.json cannot be opened; check the path"),
        (["a.qc", "b.qc"], "give one bundle, not a.qc and b.qc"),
        (["--speed", "3"], "there is no option --speed; see run --help"),
        (["--calls"], "--calls needs a value"),
        (["--calls", "many"], "--calls needs a whole number, not 'many'"),
        (["--calls", "99999999999"], "--calls needs a whole number"),
        (["--cpus", "0,x"], "--cpus needs a whole number, not 'x'"),
        (["--cpus", "0,"], "--cpus needs a whole number, not ''"),
        (["--cpus", "4095"], "CPU 4095 cannot be used; this process may use: 0"),
        (["--cpus", "0", "--threads", "2"], "must be the same"),
        (["--input", "none.npz"], "none.npz cannot be opened"),
        (["--output", "/nowhere/o.npz"], "/nowhere/o.npz cannot be written"),
    ],
)
def test_options(tiny: Path, options: list[str], message: str) -> None:
    assert message in refused(tiny, *options)


def test_inputs_that_do_not_fit(tiny: Path, tmp_path: Path) -> None:
    good, file = image(tiny), tmp_path / "i.npz"
    cases = {
        "the inputs are named image, and not picture": {"picture": good},
        "and not ?[31mred?": {"\x1b[31mred\n": good},
        "and not extra, image": {"image": good, "extra": good},
        "image must be float32[2, 3, 8, 8], not float64[2, 3, 8, 8]": {"image": good.astype(float)},
        "image must be float32[2, 3, 8, 8], not float32[1, 3, 8, 8]": {"image": good[:1]},
        "image must be float32[2, 3, 8, 8], not float32[2, 192]": {"image": good.reshape(2, 192)},
    }
    for message, arrays in cases.items():
        save_arrays(file, arrays)
        assert message in refused(tiny, "--input", str(file))
        with pytest.raises(BundleError) as caught:
            native.run_program(tiny, tiny, "x86_64", file, tmp_path / "o.npz")
        assert str(caught.value).startswith("run failed: ")
        assert message in str(caught.value)
        assert "error: " not in str(caught.value)


def test_files_that_are_no_npz(tiny: Path, tmp_path: Path) -> None:
    good, file = image(tiny), tmp_path / "i.npz"
    np.savez_compressed(file, image=good)
    assert "image.npy is compressed; save with numpy.savez" in refused(tiny, "--input", str(file))
    np.savez(file, image=np.array([{}], dtype=object))
    assert "numpy's type '|O'" in refused(tiny, "--input", str(file))
    np.savez(file, image=good.astype(">f4"))
    assert "numpy's type '>f4'" in refused(tiny, "--input", str(file))
    np.savez(file, image=np.asfortranarray(good))
    assert "Fortran order; save numpy.ascontiguousarray" in refused(tiny, "--input", str(file))
    np.savez(file, image=good)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "is no .npz file, or a damaged one" in refused(tiny, "--input", str(file))
    file.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    assert "image.npy is damaged: its checksum differs" in refused(tiny, "--input", str(file))
    file.write_bytes(b"")
    assert "is no .npz file, or a damaged one" in refused(tiny, "--input", str(file))


def test_manifests_that_cannot_be_used(bundle: Path) -> None:
    whole = (bundle / FILE).read_text()
    cases: dict[str, Callable[[dict[str, Any]], None]] = {
        "its format is not tvm": lambda m: m["engine"].update(name="onnxruntime"),
        "lies outside of it": lambda m: m.update(artifact="../model.so"),
        "image has the type complex64": lambda m: m["inputs"][0].update(dtype="complex64"),
        "the shape of image is impossible": lambda m: m["inputs"][0].update(shape=[-1]),
        "cannot be used": lambda m: m.pop("inputs"),
    }
    for message, change in cases.items():
        (bundle / FILE).write_text(whole)
        edit(bundle, change)
        assert message in refused(bundle)
    (bundle / FILE).write_text(whole[:-20])
    assert "build the bundle again" in refused(bundle)
    (bundle / FILE).write_text("[1]")
    assert "build the bundle again" in refused(bundle)


def test_missing_instruction_sets_are_named_before_the_library_is_loaded(bundle: Path) -> None:
    needed = {"cpu_features": ["sse4.2", "sve", "made-up"]}
    edit(bundle, lambda m: m["engine"]["options"].update(needed))
    (bundle / "model.so").write_bytes((bundle / "lib" / "libtvm_ffi.so").read_bytes())
    assert "this CPU lacks the instruction sets sve, made-up" in refused(bundle)


def test_a_library_of_another_architecture(bundle: Path) -> None:
    data = bytearray((bundle / "model.so").read_bytes())
    data[18:20] = struct.pack("<H", 183)
    (bundle / "model.so").write_bytes(data)
    assert "is a library for aarch64 and this program runs on x86_64" in refused(bundle)


@pytest.mark.parametrize("part", [0.0, 0.0001, 0.3, 0.9, 0.999])
def test_a_truncated_library(bundle: Path, part: float) -> None:
    data = (bundle / "model.so").read_bytes()
    (bundle / "model.so").write_bytes(data[: int(len(data) * part)])
    assert "is truncated or no shared library; copy the bundle again" in refused(bundle)


def test_a_changed_library(bundle: Path) -> None:
    data = bytearray((bundle / "model.so").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.so").write_bytes(data)
    assert "model.so is not what the manifest says; copy the bundle again" in refused(bundle)
    (bundle / "model.so").unlink()
    assert "model.so cannot be opened; is the bundle complete?" in refused(bundle)


def test_a_library_that_is_no_model(bundle: Path) -> None:
    command = ["g++", "-shared", "-x", "c++", "/dev/null", "-o", bundle / "model.so"]
    subprocess.run(command, check=True)
    edit(bundle, lambda m: m["files"].clear())
    assert "is no model of qcompile: it has no function vm_load_executable" in refused(bundle)


def test_vectors_of_other_names(bundle: Path) -> None:
    file = bundle / "vectors" / "outputs.npz"
    arrays = read_arrays(file)
    save_arrays(file, {**arrays, "more": arrays["logits"]})
    assert "names no output: more" in refused(bundle)
    save_arrays(file, {"logits": arrays["logits"]})
    assert "lacks an output" in refused(bundle)
