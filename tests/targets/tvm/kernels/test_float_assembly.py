"""The instructions in float kernels; nothing is run, so any machine can look at any CPU's.

Names: Intel SDM volume 2 and Arm ARM, in the syntax that LLVM prints.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

from qcompile.targets.device import load_device
from qcompile.targets.tvm.kernels import float_conv, float_depthwise
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits
from qcompile.targets.tvm.kernels.weights import Coding
from qcompile.targets.tvm.machine import Machine

pytest.importorskip("tvm", reason="apache-tvm is not installed")

PLAIN = Window((8, 8), 64, 64, (3, 3))
POINTWISE = Window((8, 8), 96, 32)
MATRIX = Window((1, 1), 384, 384)
DEPTHWISE = Window((8, 8), 32, 32, (3, 3))
FUSED = {
    "x86-avx512-vnni": r"vfmadd\d+ps\s.*%zmm",
    "x86-avx2": r"vfmadd\d+ps\s.*%ymm",
    "raspberry-pi-5": r"\sfmla\s+v\d+\.4s",
    "raspberry-pi-4": r"\sfmla\s+v\d+\.4s",
}
WIDEN = {
    "x86-avx512-vnni": r"vpmov[sz]xbd\s.*%zmm",
    "x86-avx2": r"vpmovsxbd\s.*%ymm",
    "raspberry-pi-5": r"\s(tbl|[su]shll)\s",
    "raspberry-pi-4": r"\s(tbl|[su]shll)\s",
}
ABSENT = {
    "x86-avx512-vnni": r"^$^",
    "x86-avx2": r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])|%k\d",
    "raspberry-pi-5": r"\sz\d+\.|\sf\w+\s+v\d+\.8h",
    "raspberry-pi-4": r"\s(sdot|udot)\s|\sz\d+\.|\sf\w+\s+v\d+\.8h",
}
"""Instructions that the CPU does not have."""
STORE = re.compile(r"^\s+(v?mov\S*\s+%\w+, .*\)|v?push|st[rpu1]\S*\s)", re.MULTILINE)
DEVICES = pytest.mark.parametrize("name", FUSED)


@cache
def assembly(name: str, window: Window, bits: int, groups: int = 1) -> str:
    """Return a kernel as LLVM prints it for a device."""
    import tvm

    machine, coding = Machine.of(load_device(name)), Coding(bits, groups)
    given = machine.vectors, coding, Limits(0.0)
    if window is MATRIX:
        kernel = float_conv.linear(window.channels, window.features, *given)
    else:
        build = float_depthwise.depthwise if window is DEPTHWISE else float_conv.conv
        kernel = build(window, *given)
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    text: str = tvm.compile(module, target=machine.target()).mod.inspect_source("s")
    return text


def loop(text: str, product: str) -> str:
    """Return the block with most products: from its label to its jump, which is to that label."""
    parts = re.split(r"^(\.LBB\w+):", text, flags=re.MULTILINE)[1:]
    label, block = max(
        zip(parts[::2], parts[1::2], strict=True),
        key=lambda part: len(re.findall(product, part[1])),
    )
    jump = re.search(rf"^\s+(j\w+|b\.\w+|cbn?z)\s.*{re.escape(label)}$", block, re.MULTILINE)
    assert jump is not None, "the loop over what is summed is not there"
    return block[: jump.start()]


@pytest.mark.parametrize("window", [PLAIN, POINTWISE, MATRIX], ids=str)
@pytest.mark.parametrize("bits", [32, 8])
@DEVICES
def test_the_inner_loop_is_of_products_in_registers(name: str, bits: int, window: Window) -> None:
    text = assembly(name, window, bits)
    assert not re.search(ABSENT[name], text)
    inner = loop(text, FUSED[name])
    assert len(re.findall(FUSED[name], inner)) >= 12
    assert bool(re.search(WIDEN[name], inner)) == (bits == 8), "decoded in the register"
    assert not STORE.search(inner), "an accumulator is written to memory for each product"
    assert not re.search(r"\(%rsp|\[sp", inner), "an accumulator is read from the stack"


@DEVICES
def test_four_bit_codes_are_decoded_in_the_register(name: str) -> None:
    inner = loop(assembly(name, MATRIX, 4, 12), FUSED[name])
    assert len(re.findall(FUSED[name], inner)) >= 12
    assert re.search(WIDEN[name], inner)
    take_apart = {"x86-avx512-vnni": r"vperm(ps|d)\s.*%zmm", "x86-avx2": "vpsrad"}.get(
        name, r"\ssshr\s"
    )
    assert re.search(take_apart, inner)
    stores = len(STORE.findall(inner))
    assert stores <= len(re.findall(FUSED[name], inner)) // 8, "accumulators stay in registers"


@DEVICES
def test_depthwise_computes_whole_registers(name: str) -> None:
    text = assembly(name, DEPTHWISE, 8)
    assert re.search(FUSED[name], text)
    assert not re.search(ABSENT[name], text)


def test_without_fma_there_are_products_and_sums() -> None:
    import tvm

    machine = Machine("x86_64", (), "x86-64-v2")
    kernel = float_conv.conv(PLAIN, machine.vectors, Coding(), Limits())
    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    text = tvm.compile(module, target=machine.target()).mod.inspect_source("s")
    assert "mulps" in text
    assert "addps" in text
    assert not re.search(r"fmadd|call\w*\s+fmaf|%ymm", text)
