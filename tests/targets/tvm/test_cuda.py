"""CUDA code inside of a library: nvcc's errors, TVM's blob, and what the library holds then."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import load_device
from qcompile.targets.tvm import cuda, program
from qcompile.targets.tvm.kernels import cuda as kernels
from qcompile.targets.tvm.machine import Machine

FATBIN = struct.pack("<I", 0xBA55ED50)
"""What a fat binary begins with (CUDA's fatbinary_section.h)."""
NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
KERNEL = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }\n'
Module = tuple[bytes, bytes, bytes]
"""Kind, table, code."""


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def packed(modules: Sequence[Module], form: bytes = b"cuda") -> bytes:
    """Return the blob in the format that ``cuda.replaced`` documents."""
    body = b"".join(
        text(kind) + text(text(form) + text(table) + text(code)) for kind, table, code in modules
    )
    return struct.pack("<Q", len(body)) + body


def unpacked(blob: bytes) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Return kind, format, table and code of each module; every length must be right."""

    def read(data: bytes) -> list[bytes]:
        found = []
        while data:
            (size,) = struct.unpack_from("<Q", data)
            assert len(data) >= 8 + size
            found.append(data[8 : 8 + size])
            data = data[8 + size :]
        return found

    (body,) = read(blob)
    parts = read(body)
    modules = []
    for kind, inner in zip(parts[::2], parts[1::2], strict=True):
        form, table, code = read(inner)
        modules.append((kind, form, table, code))
    return modules


MODULES = st.lists(
    st.tuples(
        st.sampled_from([b"cuda", b"cuda", b"relax.VMExecutable", b"const_loader"]),
        st.one_of(st.binary(max_size=20), st.just(text(b"cuda")), st.just(2 * text(b"cuda"))),
        st.one_of(st.binary(max_size=40), st.just(text(b"cuda") + b"cuda")),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=15)
@given(modules=MODULES, at=st.integers(0, 3), binary=st.binary(max_size=60))
def test_the_code_of_one_module_is_replaced_and_all_lengths_hold(
    modules: list[Module], at: int, binary: bytes
) -> None:
    at %= len(modules)
    source = b"extern __global__ " + bytes([65 + at]) * 9
    modules[at] = (b"cuda", modules[at][1], source)
    expected = [(kind, b"cuda", table, code) for kind, table, code in modules]
    expected[at] = (b"cuda", b"fatbin", modules[at][1], binary)
    blob = packed(modules)
    assume(blob.count(text(source)) == 1)
    assert unpacked(cuda.replaced(blob, source, binary)) == expected


def test_several_modules_are_replaced_one_after_the_other() -> None:
    modules: list[Module] = [(b"cuda", b"t", b"one"), (b"cuda", b"u", b"one"), (b"cuda", b"", b"2")]
    blob = packed(modules)
    for source, binary in ((b"one", b"first binary"), (b"one", b"x"), (b"2", b"")):
        blob = cuda.replaced(blob, source, binary)
    assert [m[1:] for m in unpacked(blob)] == [
        *((b"fatbin", b"t", b"first binary"), (b"fatbin", b"u", b"x")),
        (b"fatbin", b"", b""),
    ]


@pytest.mark.parametrize(
    "blob",
    [
        packed([(b"cuda", b"t", b"code")], b"ptx"),
        packed([(b"opencl", b"t", b"code")]),
        packed([(b"cuda", b"t", b"code and more")]).replace(b"code and more", b"code", 1),
        packed([(b"cuda", b"t", text(b"code") + b"more")]),
        text(text(b"cuda") + text(b"t") + text(b"code")),
    ],
    ids=["another format", "another kind", "wrong length", "more after the code", "no format"],
)
def test_a_blob_of_another_format_raises(blob: bytes) -> None:
    with pytest.raises((AssertionError, ValueError)):
        cuda.replaced(blob, b"code", b"binary")


def test_a_missing_compiler_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    message = r"^nvcc, .* not installed: get the CUDA toolkit, 12 or later \(https.*into PATH$"
    with pytest.raises(TargetError, match=message) as caught:
        cuda.compiler()
    assert "\n" not in str(caught.value)
    with pytest.raises(TargetError, match=message):
        cuda.compile_source(KERNEL, "sm_80")


@NVCC
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_ptx_for_an_architecture(arch: str) -> None:
    ptx = cuda.compile_source(KERNEL, arch, kind="ptx").decode()
    assert f".target {arch}\n" in ptx
    assert ".visible .entry twice(" in ptx
    assert "mul" in ptx or "add" in ptx


@NVCC
def test_a_fat_binary_holds_the_kernel() -> None:
    data = cuda.compile_source(KERNEL, "sm_80")
    assert data.startswith(FATBIN)
    assert b"__global__" not in data


@NVCC
@pytest.mark.parametrize(
    ("source", "arch", "message"),
    [
        ("not C++ at all;", "sm_80", r"^nvcc cannot compile for sm_80: kernels\.cu\(1\): error: "),
        (KERNEL, "sm_12", r"^nvcc cannot compile for sm_12: nvcc fatal\s*: Unsupported gpu arch"),
    ],
    ids=["source", "architecture"],
)
def test_what_nvcc_refuses_is_one_sentence(source: str, arch: str, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        cuda.compile_source(source, arch)
    assert "\n" not in str(caught.value)
    assert "/tmp" not in str(caught.value)


@pytest.fixture(scope="module")
def compiled() -> Any:
    """One kernel, compiled for sm_80 and the CPU beside it; its CUDA code is text."""
    tvm = pytest.importorskip("tvm", reason="apache-tvm is not installed")
    kernel = kernels.table(kernels.Grid(on_gpu=True), (5,), "int8", "int8")
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    return tvm.compile(module, target=Machine.of(load_device("cuda-sm80")).target())


def test_the_source_is_found_below_the_host_s_module(compiled: Any) -> None:
    source = cuda.source_of(compiled.mod)
    assert source.count("__global__") == 2, "a declaration and a definition"
    assert "main_kernel" in source


@NVCC
def test_a_library_holds_a_binary_and_no_source_and_equal_bytes(
    compiled: Any, tmp_path: Path
) -> None:
    found = set()
    for name in ("a", "another folder"):
        file = tmp_path / name / "model.so"
        file.parent.mkdir()
        pack = partial(cuda.pack_imports, "sm_80", [])
        compiled.export_library(str(file), cc="g++", options=program.LINK, fpack_imports=pack)
        found.add(file.read_bytes())
    assert len(found) == 1, "the bytes depend on the folder"
    (data,) = found
    assert data.count(FATBIN) == 1
    assert b"__global__" not in data
    assert text(b"fatbin") in data
    assert str(tmp_path).encode() not in data
