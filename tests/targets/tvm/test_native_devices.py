"""Slow: aarch64 in the emulator, memory checkers, an app's own build, equal bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qcompile.runtime.errors import BundleError
from qcompile.runtime.vectors import read_arrays
from qcompile.targets.tvm import libraries, native

MakeBundle = Callable[..., Path]
pytestmark = pytest.mark.slow
BUGS = "0 errors from 0 contexts"


class Layers(nn.Module):
    """Several constants and kernels: a small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.second = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        left = torch.relu(self.first(image))
        right = left + self.second(left)
        logits = self.head(right.mean((2, 3)))
        return logits, logits.argmax(1)


def need(*tools: str) -> None:
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_aarch64_equals_pytorch_below_ten_megabytes(
    make_bundle: MakeBundle, tmp_path: Path
) -> None:
    need("aarch64-linux-gnu-g++", "qemu-aarch64", "g++")
    torch.manual_seed(0)
    inputs = {"image": torch.randn(2, 3, 16, 16)}
    names = ("logits", "class")
    folder = make_bundle(tmp_path / "a.qc", Layers().eval(), inputs, names, arch="aarch64")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 10_000_000
    assert str(libraries.package_folder("tvm")).encode() not in (folder / "run").read_bytes()
    given, file = folder / "vectors" / "inputs.npz", tmp_path / "o.npz"
    for cpu in ("cortex-a72", "cortex-a76", None):
        native.run_program(folder, folder, "aarch64", given, file, cpu=cpu)
        found, expected = read_arrays(file), read_arrays(folder / "vectors" / "outputs.npz")
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found["class"], expected["class"])

    manifest = (folder / "manifest.json").read_text()
    changed = manifest.replace('"cpu_features": []', '"cpu_features": ["neon", "dotprod", "i8mm"]')
    assert changed != manifest
    (folder / "manifest.json").write_text(changed)
    refused = (
        r"^run failed under qemu-aarch64: this CPU lacks the instruction sets dotprod, i8mm, which"
    )
    with pytest.raises(BundleError, match=refused):
        native.run_program(folder, folder, "aarch64", given, file, cpu="cortex-a72")
    native.run_program(folder, folder, "aarch64", given, file)


def test_valgrind_finds_nothing(tiny: Path, tmp_path: Path) -> None:
    need("valgrind")
    check = ["valgrind", "--leak-check=full", "--errors-for-leak-kinds=definite,possible"]
    for options, code in ((["--threads", "2"], 0), (["--input", "none.npz"], 2)):
        command = [*check, "--error-exitcode=9", tiny / "run", tiny, "--calls", "2", *options]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == code, result.stderr
        assert BUGS in result.stderr


def test_sanitizers_find_nothing(bundle: Path, tmp_path: Path) -> None:
    include = libraries.package_folder("tvm_ffi") / "include"
    lib = bundle / "lib"
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    link = ["-Wl,--no-as-needed", lib / "libtvm_ffi.so", lib / "libtvm_runtime.so"]
    out = ["-o", bundle / "run", "-Wl,-rpath,$ORIGIN/lib"]
    source = bundle / "native" / "run.cpp"
    subprocess.run(["g++", *flags, "-isystem", include, source, *link, *out], check=True)
    whole = (bundle / "vectors" / "inputs.npz").read_bytes()
    file = tmp_path / "i.npz"
    generator = np.random.default_rng(0)
    places = [*range(0, 130, 5), *range(len(whole) - 90, len(whole), 5)]
    flips = generator.integers(1, 256, len(places))
    data = [whole, *(whole[: int(n)] for n in generator.integers(0, len(whole), 10))]
    data += [
        whole[:at] + bytes([whole[at] ^ int(flip)]) + whole[at + 1 :]
        for at, flip in zip(places, flips, strict=True)
    ]
    for index, content in enumerate(data):
        file.write_bytes(content)
        command = [bundle / "run", "--input", file, "--calls", "1"]
        result = subprocess.run(command, capture_output=True, check=False)
        assert result.returncode in ((0,) if index == 0 else (0, 2)), result.stderr
        assert b"Sanitizer" not in result.stderr
        assert b"runtime error" not in result.stderr


def test_cmake_builds_the_program(bundle: Path) -> None:
    need("cmake")
    ffi = libraries.package_folder("tvm_ffi")
    build = bundle.parent / "build"
    subprocess.run(["cmake", "-S", bundle / "native", "-B", build, f"-DTVM_FFI={ffi}"], check=True)
    subprocess.run(["cmake", "--build", build], check=True)
    result = subprocess.run([build / "run", bundle], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "ok  logits" in result.stdout


def test_equal_bytes_from_another_cache(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another place"))
    (tmp_path / "again.qc").mkdir()
    native.build_program(tmp_path / "again.qc", "x86_64")
    program = (tmp_path / "again.qc" / "run").read_bytes()
    assert program == (tiny / "run").read_bytes()
    assert str(libraries.package_folder("tvm_ffi")).encode() not in program
