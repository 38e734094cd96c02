"""What instruction sets offer for 8-bit arithmetic, as TIR expressions.

A *dot* adds to each of some 32-bit lanes the sum of four products of 8-bit numbers: four bytes of the
activations, the same for all lanes, by four bytes of weights a lane. Sources: Intel SDM, VPDPBUSD and
VPMADDUBSW; Arm ARM, SDOT, SMULL and SADALP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.tvm.tools import tir

Expr = Any


@dataclass(frozen=True)
class Instructions:
    """The instructions that kernels are written for.

    Args:
        name: Of the instruction that does the dot.
        lanes: 32-bit numbers in a register.
        registers: Accumulators that a kernel may hold; some are left for operands.
        dot: ``(accumulators, activations, weights)``: int32 x lanes, 4 bytes, 4 x lanes bytes.
        signed: Whether activations are int8; uint8 otherwise.
        vectors: Registers of the CPU.
        weight_bits: With which no sum inside of an instruction overflows.
    """

    name: str
    lanes: int
    registers: int
    dot: Callable[[Expr, Expr, Expr], Expr]
    signed: bool
    vectors: int
    weight_bits: int = 8


def for_cpu(arch: str, isa: frozenset[str]) -> Instructions:
    """Return the best instructions of a CPU.

    Args:
        arch: ``x86_64`` or ``aarch64``.
        isa: Words of the device file.

    Raises:
        TargetError: It has none that the kernels are written for.
    """
    if arch == "aarch64":
        return SDOT if "dotprod" in isa else SMULL
    if "avx512vnni" in isa:
        return VNNI_512
    if "avxvnni" in isa:
        return VNNI_256
    if "avx2" not in isa:
        raise TargetError(
            "the integer kernels of tvm need AVX2 on x86_64: use -p fp32 or --format onnx"
        )
    return MADD_256


def _intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    t = tir()
    return t.call_llvm_pure_intrin(dtype, t.llvm_lookup_intrinsic_id(name), *args)


def _spread(activations: Expr, lanes: int, dtype: str) -> Expr:
    """Return the four bytes once for each lane."""
    t = tir()
    one = t.reinterpret("int32", activations)
    return t.reinterpret(dtype, t.broadcast(one, lanes))


def _vnni(width: int) -> Callable[[Expr, Expr, Expr], Expr]:
    lanes = width // 32

    def dot(sums: Expr, activations: Expr, weights: Expr) -> Expr:
        spread = _spread(activations, lanes, f"uint8x{4 * lanes}")
        name = f"llvm.x86.avx512.vpdpbusd.{width}"
        return _intrinsic(name, f"int32x{lanes}", sums, spread, weights)

    return dot


def _madd(sums: Expr, activations: Expr, weights: Expr) -> Expr:
    t = tir()
    pairs = _intrinsic(
        "llvm.x86.avx2.pmadd.ub.sw", "int16x16", _spread(activations, 8, "uint8x32"), weights
    )
    ones = t.broadcast(t.int16(1), 16)
    return sums + _intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", pairs, ones)


def _sdot(sums: Expr, activations: Expr, weights: Expr) -> Expr:
    spread = _spread(activations, 4, "int8x16")
    return _intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums, spread, weights)


def _smull(sums: Expr, activations: Expr, weights: Expr) -> Expr:
    t = tir()
    spread = _spread(activations, 2, "int8x8")
    halves = [
        _intrinsic("llvm.aarch64.neon.smull.v8i16", "int16x8", spread, part)
        for part in (t.vectorlow("int8x8", weights), t.vectorhigh("int8x8", weights))
    ]
    pairs = [_intrinsic("llvm.aarch64.neon.saddlp.v4i32.v8i16", "int32x4", h) for h in halves]
    return sums + _intrinsic("llvm.aarch64.neon.addp.v4i32", "int32x4", *pairs)


VNNI_512 = Instructions("vpdpbusd zmm", 16, 24, _vnni(512), signed=False, vectors=32)
VNNI_256 = Instructions("vpdpbusd ymm", 8, 12, _vnni(256), signed=False, vectors=16)
MADD_256 = Instructions("vpmaddubsw ymm", 8, 10, _madd, signed=False, vectors=16, weight_bits=7)
SDOT = Instructions("sdot", 4, 16, _sdot, signed=True, vectors=32)
SMULL = Instructions("smull", 4, 12, _smull, signed=True, vectors=32)
