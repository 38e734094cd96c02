"""Devices that TVM serves: NVIDIA GPUs by their files, CPUs by what follows from their instructions."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from click.testing import CliRunner

from qcompile.compiler.cli.targets import command
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.cpu_facts import precisions_of, tvm_precisions_of
from qcompile.targets.device import device_names, load_device
from qcompile.targets.device_schema import CUDA as CUDA_FACTS
from qcompile.targets.device_schema import FORMATS, ISA

SHIPPED = [name for name in device_names() if name != "host"]
CUDA = [name for name in SHIPPED if load_device(name).cuda_arch is not None]
CPU = [n for n in SHIPPED if n not in CUDA and load_device(n).llvm_cpu is not None]
CARDS = [name for name in CUDA if name.startswith("cuda-")]
# Shared memory of a multiprocessor less the KiB that CUDA keeps for each block, by the tuning guides.
SHARED = {"sm_80": 164 - 1, "sm_86": 100 - 1, "sm_87": 164 - 1, "sm_89": 100 - 1, "sm_90": 228 - 1}
GPU = """
description = "my card"
format = "tvm"
arch = "x86_64"
isa = []
llvm_cpu = "x86-64"
cuda_arch = "sm_75"
shared_memory_kib = 64
registers = 65536
max_threads = 1024
tensor_cores = ["fp16", "int8"]
precision = "fp16"
""" + "".join(
    f'precisions.{name} = {{fast = true, why = "it is"}}\n' for name in CUDA_FACTS.precisions
)


def card(folder: Path, text: str = GPU) -> str:
    path = folder / "my-card.toml"
    path.write_text(text)
    return str(path)


def test_the_gpus_that_ship() -> None:
    archs = {name: load_device(name).cuda_arch for name in CUDA}
    assert archs == {
        **{f"cuda-sm{n}": f"sm_{n}" for n in (80, 86, 89, 90)},
        **dict.fromkeys(("jetson-orin-nano", "jetson-agx-orin"), "sm_87"),
    }
    assert [load_device(f"jetson-{n}").memory_mib for n in ("orin-nano", "agx-orin")] == [
        8 * 1024,
        64 * 1024,
    ]


@pytest.mark.parametrize("name", CUDA)
def test_a_gpu_is_complete(name: str) -> None:
    device = load_device(name)
    assert (device.format, device.precision) == ("tvm", "fp16")
    assert device.arch == ("x86_64" if name in CARDS else "aarch64")
    assert device.shared_memory_kib == SHARED[str(device.cuda_arch)]
    assert (device.registers, device.max_threads) == (65536, 1024)
    assert device.facts("tvm") == device.precisions
    # Eight-bit floats came with Ada, 8.9; all of these multiply int8 and fp16.
    assert ("fp8" in device.tensor_cores) is (device.cuda_arch in ("sm_89", "sm_90"))
    assert {"fp16", "int8"} <= set(device.tensor_cores)
    assert all(device.precisions[p].fast for p in ("fp16", "int8"))
    assert device.gpu_memory_mib is None or device.memory_mib is None


@pytest.mark.parametrize("name", CARDS)
def test_nothing_is_said_of_the_cpu_beside_a_card(name: str) -> None:
    device = load_device(name)
    assert device.formats == ("tvm",)
    with pytest.raises(TargetError, match=f"target '{name}' has no facts for onnx; these do: "):
        device.default_precision("onnx")


def test_the_cpu_of_a_jetson_serves_onnx() -> None:
    device = load_device("jetson-orin-nano")
    assert device.formats == ("tvm", "onnx")
    assert device.facts("onnx") == precisions_of(device.isa)
    assert device.default_precision("onnx") == "int8"


def test_the_cpus_that_tvm_serves() -> None:
    without = {n for n in SHIPPED if "tvm" not in load_device(n).formats}
    assert without == {"web-wasm", *(n for n in SHIPPED if n.startswith("apple-"))}
    assert set(CPU) == set(SHIPPED) - without - set(CUDA)


@pytest.mark.parametrize("name", CPU)
def test_a_cpu_has_the_facts_of_both_formats(name: str) -> None:
    device = load_device(name)
    assert device.formats == ("onnx", "tvm")
    assert device.facts("tvm") == tvm_precisions_of(device.isa)
    assert device.facts("onnx") == device.precisions
    assert tuple(device.facts("tvm")) == FORMATS["tvm"].precisions


@pytest.mark.parametrize(("name", "has"), [("web-wasm", "onnx"), ("apple-m1", "coreml, onnx")])
def test_a_device_without_facts_for_tvm(name: str, has: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(name).facts("tvm")
    message = str(error.value)
    assert message.startswith(f"target '{name}' has no facts for tvm; these do: ")
    assert f"; it has facts for {has}; " in message
    assert all(other in message for other in [*CPU, *CUDA])


def test_a_card_of_ones_own(tmp_path: Path) -> None:
    device = load_device(card(tmp_path))
    assert (device.cuda_arch, device.shared_memory_kib) == ("sm_75", 64)
    assert device.tensor_cores == ("fp16", "int8")
    assert device.default_precision("tvm") == "fp16"


def test_limits_of_a_block_are_for_gpus_alone(tmp_path: Path) -> None:
    with pytest.raises(TargetError) as error:
        load_device(card(tmp_path, GPU.replace('cuda_arch = "sm_75"', "")))
    for key in ("shared_memory_kib", "registers", "max_threads", "tensor_cores"):
        assert f"unknown key '{key}'" in str(error.value)


def test_a_gpu_of_another_format(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="'cuda_arch' needs format = 'tvm'"):
        load_device(card(tmp_path, GPU.replace('format = "tvm"', 'format = "onnx"')))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("registers = 65536", "", "missing key 'registers'"),
        ("tensor_cores = ", "# ", "missing key 'tensor_cores'"),
        ('"int8"]', '"int3"]', "'tensor_cores' is ['fp16', 'int3'], not a list of fp16, bf16"),
        ('"sm_75"', '"7.5"', "'cuda_arch' is '7.5', not a CUDA architecture such as 'sm_80'"),
        ('"sm_75"', "75", "'cuda_arch' is 75, not a CUDA architecture such as 'sm_80'"),
        ('"x86-64"', '"x86 64"', "'llvm_cpu' is 'x86 64', not an LLVM processor"),
        ('"x86_64"', '"wasm32"', "'llvm_cpu' is for x86_64 and aarch64, not for wasm32"),
        ("max_threads = 1024", "max_threads = 0", "'max_threads' is 0, not a whole number above 0"),
        ("precisions.fp16", "precisions.int4", "missing key 'precisions.fp16.fast'"),
    ],
)
def test_a_wrong_card(tmp_path: Path, old: str, new: str, part: str) -> None:
    with pytest.raises(TargetError) as error:
        load_device(card(tmp_path, GPU.replace(old, new)))
    assert part in str(error.value)


def test_the_command_shows_a_gpu() -> None:
    text = CliRunner().invoke(command, ["cuda-sm80"]).output
    assert "fp16                 runs fast, the default" in text
    assert "source of cuda_arch" in text
    data = CliRunner().invoke(command, ["cuda-sm80", "--json"]).output
    assert '"cuda_arch": "sm_80"' in data


@functools.cache
def features(arch: str, cpu: str) -> frozenset[str]:
    """Return what LLVM gives a processor; skips without TVM."""
    tvm = pytest.importorskip("tvm")
    triple = f"{arch}-linux-gnu"
    codegen = tvm.target.codegen
    assert codegen.llvm_is_valid_cpu(cpu, triple), f"LLVM knows no {cpu} for {arch}"
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": cpu})
    return frozenset(codegen.llvm_get_cpu_features(target))


@pytest.mark.parametrize("name", [*CPU, *CUDA])
def test_llvm_knows_the_processor_and_gives_it_no_instruction_that_isa_leaves_out(
    name: str,
) -> None:
    device = load_device(name)
    given_by_llvm = features(device.arch, str(device.llvm_cpu)) & set(ISA[device.arch])
    assert given_by_llvm <= set(device.isa)


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_every_word_for_an_instruction_set_is_one_of_llvm_s(arch: str) -> None:
    newest = {"x86_64": ("graniterapids",), "aarch64": ("neoverse-v1", "apple-m4")}[arch]
    assert set(ISA[arch]) <= set().union(*(features(arch, cpu) for cpu in newest))
