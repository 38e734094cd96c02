"""The instructions in compiled kernels; nothing is run, so any machine can look at any CPU's.

Names: Intel SDM volume 2 and Arm ARM, in the syntax that LLVM prints.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from qcompile.targets.device import load_device
from qcompile.targets.tvm.kernels import conv, depthwise
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.machine import Machine

pytest.importorskip("tvm", reason="apache-tvm is not installed")

PLAIN = Window((8, 8), 16, 32, (3, 3))
POINTWISE = Window((8, 8), 96, 32)
PADDED = Window((16, 16), 16, 32, (3, 3), (1, 1), (1, 1))
WIDE = Window((6, 6), 96, 256)
NARROW = Window((3, 3), 96, 256)
DEPTHWISE = Window((8, 8), 32, 32, (3, 3))
ALDER_LAKE = Machine("x86_64", ("avx2", "fma", "f16c", "avxvnni"), "alderlake")
DOTS = {
    "x86-avx512-vnni": r"vpdpbusd\s.*%zmm",
    "alder-lake": r"\{vex\}\s+vpdpbusd\s.*%ymm",
    "x86-avx2": r"vpmaddubsw\s.*%ymm",
    "raspberry-pi-5": r"\ssdot\s+v\d+\.4s, v\d+\.16b, v\d+\.16b",
    "raspberry-pi-4": r"\ssmull\s+v\d+\.8h, v\d+\.8b, v\d+\.8b",
}
ABSENT = {
    "x86-avx512-vnni": r"vpmaddubsw",
    "alder-lake": r"vpmaddubsw|%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k\d",
    "x86-avx2": r"vpdpbusd|%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k\d",
    "raspberry-pi-5": r"\s(udot|usdot|smmla|smull)\s|\sz\d+\.",
    "raspberry-pi-4": r"\s(sdot|udot|usdot|smmla)\s|\sz\d+\.|\sf\w+\s+v\d+\.8h",
}
"""Instructions that the CPU does not have, or that another kernel is for."""
STORE = re.compile(r"^\s+(v?mov\S*\s+%\w+, .*\)|v?push|st[rpu1]\S*\s)", re.MULTILINE)


@cache
def assembly(name: str, window: Window) -> str:
    """Return a kernel as LLVM prints it for a device."""
    import tvm

    machine = ALDER_LAKE if name == "alder-lake" else Machine.of(load_device(name))
    signed = machine.instructions.signed
    codes = Codes("int8", -128, 127) if signed else Codes("uint8", 0, 255)
    build = depthwise.depthwise if window is DEPTHWISE else conv.conv
    kernel = build(window, machine.instructions, 3, codes)
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    text: str = tvm.compile(module, target=machine.target()).mod.inspect_source("s")
    return text


def loop(text: str, dot: str) -> str:
    """Return the block with most dots: from its label to its jump, which is to that label."""
    parts = re.split(r"^(\.LBB\w+):", text, flags=re.MULTILINE)[1:]
    label, block = max(
        zip(parts[::2], parts[1::2], strict=True), key=lambda part: len(re.findall(dot, part[1]))
    )
    jump = re.search(rf"^\s+(j\w+|b\.\w+|cbn?z)\s.*{re.escape(label)}$", block, re.MULTILINE)
    assert jump is not None, "the loop over what is summed is not there"
    return block[: jump.start()]


@pytest.mark.parametrize("window", [PLAIN, POINTWISE, PADDED, DEPTHWISE], ids=str)
@pytest.mark.parametrize("name", DOTS)
def test_no_instruction_that_the_cpu_lacks(name: str, window: Window) -> None:
    assert not re.search(ABSENT[name].replace("|smull", ""), assembly(name, window))


@pytest.mark.parametrize("window", [PLAIN, POINTWISE, PADDED, WIDE, NARROW], ids=str)
@pytest.mark.parametrize("name", DOTS)
def test_the_inner_loop_is_of_dots_in_registers(name: str, window: Window) -> None:
    text, dot = assembly(name, window), DOTS[name]
    assert not re.search(ABSENT[name], text)
    inner = loop(text, dot)
    machine = ALDER_LAKE if name == "alder-lake" else Machine.of(load_device(name))
    pixels, blocks = conv.tile(window, machine.instructions)
    assert pixels * blocks >= 6
    assert len(re.findall(dot, inner)) % (pixels * blocks) == 0
    assert len(re.findall(dot, inner)) > 0
    assert not STORE.search(inner), "an accumulator is written to memory for each dot"
    assert not re.search(r"\(%rsp|\[sp", inner), "an accumulator is read from the stack"


@pytest.mark.parametrize("name", DOTS)
def test_only_a_border_takes_memory_beside_the_arguments(name: str) -> None:
    assert "AllocWorkspace" not in assembly(name, PLAIN)
    assert "AllocWorkspace" not in assembly(name, POINTWISE)
    assert "AllocWorkspace" in assembly(name, PADDED)


def test_pairs_of_products_are_widened_where_there_is_no_dot() -> None:
    assert re.search(r"vpmaddwd\s.*%ymm", loop(assembly("x86-avx2", PLAIN), "vpmaddubsw"))
    inner = loop(assembly("raspberry-pi-4", PLAIN), r"\ssmull\s")
    assert re.search(r"\ssadd?[al][lp]\w*\s+v\d+\.4s, v\d+\.8h", inner)


@pytest.mark.parametrize("name", DOTS)
def test_depthwise_computes_whole_registers(name: str) -> None:
    text = assembly(name, DEPTHWISE)
    register = r"\.4s" if "raspberry" in name else "%zmm" if "512" in name else "%ymm"
    product = (
        r"\s(mla|mul|smlal2?|smull2?)\s" if "raspberry" in name else "vpmulld|vpmaddwd|vpdpwssd"
    )
    assert re.search(rf"({product}).*{register}", text)
