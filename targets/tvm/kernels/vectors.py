"""Registers of floats: how wide they are on a CPU, and what is computed in them.

``llvm.fmuladd`` becomes one instruction where the CPU has it (vfmadd, fmla), and a product and a sum where it
has not. Sources: LLVM Language Reference, "llvm.fmuladd.*"; Intel SDM, VFMADD231PS; Arm ARM, FMLA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qcompile.targets.tvm.kernels.parts import spread
from qcompile.targets.tvm.tools import tir

Expr = Any


@dataclass(frozen=True)
class Vectors:
    """The vector registers of a CPU.

    Args:
        name: Of the registers.
        lanes: float32 numbers in one.
        count: How many there are.
        widening: Instructions that turn a register of int8 codes into floats.
        looks_up: Whether one instruction looks up each lane in a register of 16 floats.
    """

    name: str
    lanes: int
    count: int
    widening: int
    looks_up: bool = False


def for_floats(arch: str, isa: frozenset[str]) -> Vectors:
    """Return the widest registers of a CPU.

    Args:
        arch: ``x86_64`` or ``aarch64``.
        isa: Words of the device file.
    """
    if arch == "aarch64":
        return NEON
    if "avx512f" in isa:
        return ZMM
    return YMM if "avx2" in isa else XMM


ZMM = Vectors("zmm", 16, 32, 2, looks_up=True)
YMM = Vectors("ymm", 8, 16, 2)
XMM = Vectors("xmm", 4, 16, 2)
NEON = Vectors("v", 4, 32, 3)


@dataclass(frozen=True)
class Limits:
    """What results are limited to: a layer's activation function; infinite without one."""

    low: float = float("-inf")
    high: float = float("inf")

    def apply(self, values: Expr, lanes: int) -> Expr:
        """Return values within the limits; NaN stays NaN, as in PyTorch's ``clamp``."""
        t = tir()
        if self.low != float("-inf"):
            values = t.max(spread(t.float32(self.low), lanes), values)
        if self.high != float("inf"):
            values = t.min(spread(t.float32(self.high), lanes), values)
        return values


def multiply_add(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """Return ``a * b + c`` of float32, rounded once where the CPU can."""
    t = tir()
    name = t.llvm_lookup_intrinsic_id("llvm.fmuladd")
    return t.call_llvm_pure_intrin(typed("float32", lanes), name, a, b, c)


def typed(dtype: str, lanes: int) -> str:
    """Return the name of a vector's type."""
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def constant(value: float, lanes: int) -> Expr:
    """Return a number once for each lane."""
    return spread(tir().float32(value), lanes)
