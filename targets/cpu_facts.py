"""Which precisions run fast on a CPU, by format and instruction set."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PrecisionFact:
    """Whether a precision runs fast on a device, or merely runs, and why."""

    fast: bool
    why: str


_Ranked = tuple[tuple[str, bool, str], ...]
_ONNX_INT8: _Ranked = (
    ("amx-int8", True, "AMX TDPBUSD multiplies tiles of u8 by s8"),
    ("avx512vnni", True, "VPDPBUSD sums four u8 by s8 products in 32 bits"),
    ("avxvnni", True, "VPDPBUSD sums four u8 by s8 products in 32 bits"),
    ("i8mm", True, "SMMLA and SDOT, int8 matrix and dot products"),
    ("dotprod", True, "SDOT and UDOT sum four 8-bit products in 32 bits"),
    ("avx2", True, "VPMADDUBSW beats float; it saturates, so weights should use 7 bits"),
    ("neon", False, "no dot product: SMLAL widens each product, the gain is small"),
)
_TVM_INT8: _Ranked = (
    ("avx512vnni", True, "VPDPBUSD takes 64 products of u8 by s8 into 32-bit sums"),
    ("avxvnni", True, "VPDPBUSD takes 32 products of u8 by s8 into 32-bit sums"),
    ("dotprod", True, "SDOT takes 16 8-bit products into 32-bit sums"),
    (
        "avx2",
        True,
        "VPMADDUBSW and VPMADDWD take 32 products; weights of 7 bits cannot saturate them",
    ),
    ("neon", False, "no dot product: SMULL, SADDLP and ADDP for 8 products each"),
)


def precisions_of(isa: Collection[str]) -> dict[str, PrecisionFact]:
    """Return what ONNX Runtime's CPU kernels make of each precision with these instructions."""
    return {
        "int8": _best(_ONNX_INT8, isa),
        "fp16": PrecisionFact(False, "many operators cast to float and back; half the bytes"),
        "fp32": PrecisionFact(True, "float vector arithmetic"),
        "w8a16": PrecisionFact(False, "a smaller file; the arithmetic stays float"),
    }


def tvm_precisions_of(isa: Collection[str]) -> dict[str, PrecisionFact]:
    """Return what the kernels of ``targets/tvm`` make of each precision with these instructions."""
    return {
        "int8": _best(_TVM_INT8, isa),
        "fp32": PrecisionFact(True, f"float32 sums in {_registers(isa)}"),
        "w8a16": PrecisionFact(True, "int8 weights become float32 in the register"),
        "int4": PrecisionFact(True, "two weights a byte become float32 in the register"),
    }


def _registers(isa: Collection[str]) -> str:
    """Return the widest registers that floats are multiplied in."""
    known = (("avx512f", "512 bits"), ("avx2", "256 bits"))
    return "registers of " + next((width for name, width in known if name in isa), "128 bits")


def onnx_default(isa: Collection[str]) -> str:
    """Return the fastest precision at full quality in ONNX Runtime."""
    return "int8" if {"avx2", "neon"} & set(isa) else "fp32"


def tvm_default(isa: Collection[str]) -> str:
    """Return the fastest precision at full quality in TVM: without a dot product too, it beats float."""
    return "int8" if {"avx2", "neon"} & set(isa) else "fp32"


@dataclass(frozen=True)
class CpuFormat:
    """What follows from a CPU's instruction set in one format."""

    precisions: Callable[[Collection[str]], dict[str, PrecisionFact]]
    default: Callable[[Collection[str]], str]


CPU_FORMATS: Mapping[str, CpuFormat] = {
    "onnx": CpuFormat(precisions_of, onnx_default),
    "tvm": CpuFormat(tvm_precisions_of, tvm_default),
}
"""Formats whose facts need not be written in a file."""


def _best(ranked: _Ranked, isa: Collection[str]) -> PrecisionFact:
    known = [PrecisionFact(fast, why) for name, fast, why in ranked if name in isa]
    return known[0] if known else PrecisionFact(False, "no SIMD kernel known")
