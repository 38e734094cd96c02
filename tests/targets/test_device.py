"""Device files are complete and sourced; mistakes in one are named, all at once."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import (
    device_names,
    host_device,
    isa_from_listing,
    load_device,
    precisions_of,
)
from qcompile.targets.device_schema import CUDA, FORMATS, ISA

SHIPPED = [name for name in device_names() if name != "host"]
# A figure, and the key under [sources] that must back it.
FIGURES = {
    "cores": "cores",
    "gpu_cores": "gpu",
    "neural_engine_cores": "neural_engine",
    "neural_engine_tops": "neural_engine",
    "neural_engine_generation": "neural_engine_generation",
    "memory_mib": "memory",
    "memory_bandwidth_gbs": "memory_bandwidth",
    "llvm_cpu": "llvm_cpu",
    "cuda_arch": "cuda_arch",
    "gpu_memory_mib": "gpu_memory",
    "shared_memory_kib": "cuda_limits",
    "registers": "cuda_limits",
    "max_threads": "cuda_limits",
    "os": "os",
    "os_minimum": "os",
    "os_first": "os_first",
}
BOARD = """
description = "my board"
format = "onnx"
arch = "aarch64"
isa = ["neon", "dotprod"]
cores = 4
precision = "int8"
precisions.int8 = {fast = true, why = "SDOT"}
precisions.fp16 = {fast = false, why = "casts"}
precisions.fp32 = {fast = true, why = "FMLA"}
precisions.w8a16 = {fast = false, why = "float arithmetic"}
"""
X86_CPUINFO = """processor\t: 0
model name\t: A Processor
stepping\t: 1
flags\t\t: fpu sse2 fma f16c avx2 avx512f avx512bw avx512vl avx512_vnni
processor\t: 1
flags\t\t: fpu sse2 fma f16c avx2 avx512f avx512bw avx512vl avx512_vnni
"""
ARM_CPUINFO = """processor\t: 0
Features\t: fp asimd crc32 atomics fphp asimdhp asimddp i8mm bf16
CPU part\t: 0xd40
"""
SYSCTL = "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\n"


def board(folder: Path, text: str = BOARD) -> str:
    path = folder / "my-board.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_and_every_isa_has_a_source(name: str) -> None:
    device = load_device(name)
    needed = {source for key, source in FIGURES.items() if getattr(device, key) is not None}
    needed |= {"tensor_cores"} if device.tensor_cores else set()
    assert needed | {"isa", "precisions"} <= set(device.sources)
    assert all(url.startswith("https://") for url in device.sources.values())


@pytest.mark.parametrize("name", device_names())
def test_every_device_judges_the_precisions_of_its_format(name: str) -> None:
    device = load_device(name)
    assert device.name == name
    facts = FORMATS[device.format] if device.cuda_arch is None else CUDA
    assert tuple(device.precisions) == facts.precisions
    assert device.precision in device.precisions
    assert all(fact.why for fact in device.precisions.values())


@pytest.mark.parametrize("name", [name for name in SHIPPED if load_device(name).format == "onnx"])
def test_files_and_detection_agree_on_what_is_fast(name: str) -> None:
    device = load_device(name)
    detected = precisions_of(device.isa)
    assert {p: fact.fast for p, fact in device.precisions.items()} == {
        p: fact.fast for p, fact in detected.items()
    }


@pytest.mark.parametrize("name", device_names())
def test_every_instruction_set_is_a_known_word(name: str) -> None:
    device = load_device(name)
    assert set(device.isa) <= set(ISA[device.arch])
    assert len(set(device.isa)) == len(device.isa)


def test_an_instruction_set_of_another_architecture(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as error:
        load_device(board(tmp_path, BOARD.replace('"dotprod"', '"dotprd", "avx2"')))
    assert "'isa' names 'dotprd', 'avx2', and aarch64 has: neon, dotprod, i8mm" in str(error.value)


def test_names() -> None:
    assert "host" in device_names()
    assert device_names() == sorted(device_names())
    assert {"raspberry-pi-4", "x86-avx512-vnni", "web-wasm"} <= set(SHIPPED)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    device = load_device(board(tmp_path))
    assert (device.name, device.cores, device.memory_mib) == ("my-board", 4, None)
    assert device.isa == ("neon", "dotprod")


@pytest.mark.parametrize("wanted", ["raspberry-pi-6", "x86-avx3"])
def test_unknown_name_names_the_nearest(wanted: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(wanted)
    message = str(error.value)
    near = wanted[:-1] + {"6": "5", "3": "2"}[wanted[-1]]
    assert message.startswith(f"no target '{wanted}'; nearest: {near}")
    assert message.endswith(f"; `qcompile targets` lists all {len(device_names())}")


def test_unknown_name_with_nothing_near() -> None:
    with pytest.raises(TargetError) as error:
        load_device("???")
    count = len(device_names())
    assert str(error.value) == f"no target '???'; `qcompile targets` lists all {count}"


def test_a_name_cannot_leave_the_folder() -> None:
    with pytest.raises(TargetError, match=r"no target '\.\./devices/web-wasm'"):
        load_device("../devices/web-wasm")


def test_all_mistakes_in_a_file_at_once(tmp_path: Path) -> None:
    text = BOARD.replace('format = "onnx"', 'colour = "red"').replace("cores = 4", "cores = true")
    text = text.replace('"aarch64"', '"riscv64"').replace(', why = "SDOT"', ", because = 3")
    path = board(tmp_path, text)
    with pytest.raises(TargetError) as error:
        load_device(path)
    message = str(error.value)
    assert message.startswith(f"target file '{path}': ")
    for part in (
        "missing key 'format'",
        "missing key 'precisions.int8.why'",
        "unknown key 'colour'",
        "unknown key 'precisions.int8.because'",
        "'cores' is True, not a whole number above 0",
        "'arch' is 'riscv64', not one of x86_64, aarch64, wasm32",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("memory_mib = 0.5", "'memory_mib' is 0.5, not a whole number above 0"),
        ("memory_bandwidth_gbs = -1.0", "'memory_bandwidth_gbs' is -1.0, not a number above 0"),
        ("memory_bandwidth_gbs = inf", "'memory_bandwidth_gbs' is inf, not a number above 0"),
        ("os = 12", "'os' is 12, not a string"),
        ("os_minimum = {}", "'os_minimum' is {}, not a string"),
        ("llvm_cpu = 'Cortex A76'", "'llvm_cpu' is 'Cortex A76', not an LLVM processor such as"),
        ("sources = 3", "'sources' is 3, not a table"),
        ("sources.cores = 3", "'sources.cores' is 3, not a string"),
        ("precisions.int4 = {fast = true}", "unknown key 'precisions.int4.fast'"),
    ],
)
def test_a_wrong_value(tmp_path: Path, line: str, part: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(board(tmp_path, BOARD + line))
    assert part in str(error.value)


def test_isa_of_other_things_than_strings(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"'isa' is \['neon', 3\], not a list of strings"):
        load_device(board(tmp_path, BOARD.replace('"dotprod"', "3")))


@pytest.mark.parametrize("text", ["cores = ", "\udcff"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my-board.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(TargetError, match=r"my-board\.toml' cannot be read: "):
        load_device(str(path))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(TargetError, match=r"target file 'no-board\.toml' cannot be read: "):
        load_device("./no-board.toml")


def test_isa_is_read_from_a_listing() -> None:
    vnni = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni")
    assert isa_from_listing(X86_CPUINFO) == vnni
    assert set(isa_from_listing(ARM_CPUINFO)) == {"neon", "dotprod", "i8mm", "bf16", "fullfp16"}
    assert isa_from_listing(SYSCTL) == ("neon", "dotprod")
    assert isa_from_listing("") == ()


@pytest.mark.parametrize(
    ("machine", "text", "arch", "precision", "fast"),
    [
        ("x86_64", X86_CPUINFO, "x86_64", "int8", True),
        ("arm64", ARM_CPUINFO, "aarch64", "int8", True),
        ("aarch64", "Features : fp asimd", "aarch64", "int8", False),
        ("AMD64", "flags : sse2", "x86_64", "fp32", False),
    ],
)
def test_host_chooses_by_its_instructions(
    monkeypatch: pytest.MonkeyPatch, machine: str, text: str, arch: str, precision: str, fast: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("qcompile.targets.device._host_isa", lambda: isa_from_listing(text))
    device = host_device()
    assert (device.arch, device.precision) == (arch, precision)
    assert device.precisions["int8"].fast is fast
    assert device.llvm_cpu == "native"
    assert device.formats == ("onnx", "tvm")
    assert device.cores is not None


def test_host_of_an_unknown_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="no facts about 'riscv64'"):
        host_device()
