"""What a device file may say: its keys, their types, and the precisions that each format has."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qcompile.targets.systems import SYSTEMS, major, refusal

ISA: Mapping[str, tuple[str, ...]] = {
    "x86_64": (
        *("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avxvnni"),
        *("amx-tile", "amx-int8", "amx-bf16"),
    ),
    "aarch64": ("neon", "dotprod", "i8mm", "fullfp16", "bf16", "sve", "sme", "sme2"),
    "wasm32": ("simd128", "relaxed-simd"),
}
"""By architecture, what an ``isa`` may name, in LLVM's words."""
TENSOR_TYPES = ("fp16", "bf16", "tf32", "fp8", "int8")
"""What tensor cores may multiply."""
COMPUTE_UNITS = ("CPU", "GPU", "Neural Engine")
"""Of a chip that runs Core ML."""


class Kind(NamedTuple):
    """A type of value: its name in messages, and a test."""

    text: str
    holds: Callable[[Any], bool]


def _one_of(*names: str) -> Kind:
    return Kind(f"one of {', '.join(names)}", lambda v: v in names)


def _list_of(text: str, holds: Callable[[Any], bool]) -> Kind:
    return Kind(f"a list of {text}", lambda v: isinstance(v, list) and all(holds(i) for i in v))


def _like(text: str, pattern: str) -> Kind:
    return Kind(text, lambda v: isinstance(v, str) and re.fullmatch(pattern, v, re.A) is not None)


_STRING = Kind("a string", lambda v: isinstance(v, str))
_VERSION = Kind(
    "a version such as '18.0'",
    lambda v: isinstance(v, str) and major(v) is not None,
)
_LLVM_CPU = _like("an LLVM processor such as 'cortex-a76'", r"[a-z0-9][a-z0-9_.-]*")
_CUDA_ARCH = _like("a CUDA architecture such as 'sm_80'", r"sm_[1-9]\d{1,2}[af]?")
_TABLE = Kind("a table", lambda v: isinstance(v, dict))
_BOOLEAN = Kind("true or false", lambda v: isinstance(v, bool))
_COUNT = Kind("a whole number above 0", lambda v: type(v) is int and v > 0)
_NUMBER = Kind("a number above 0", lambda v: type(v) in (int, float) and 0 < v < math.inf)
_STRINGS = _list_of("strings", lambda v: isinstance(v, str))
_UNITS = _list_of(", ".join(COMPUTE_UNITS), lambda v: v in COMPUTE_UNITS)
_TYPES = _list_of(", ".join(TENSOR_TYPES), lambda v: v in TENSOR_TYPES)


@dataclass(frozen=True)
class FormatFacts:
    """What a device file must say for one format.

    Args:
        precisions: Each needs a fact.
        required: Keys that are optional in general and needed here.
        oldest: The oldest major version that the format is written for, by operating system.
    """

    precisions: tuple[str, ...]
    required: Mapping[str, Kind] = field(default_factory=dict)
    oldest: Mapping[str, int] = field(default_factory=dict)


_PALETTES = tuple(f"palette-{bits}" for bits in (1, 2, 3, 4, 6, 8))
_APPLE = {"ios": 16, "macos": 13}
FORMATS: Mapping[str, FormatFacts] = {
    "onnx": FormatFacts(("int8", "fp16", "fp32", "w8a16")),
    "coreml": FormatFacts(
        ("fp32", "fp16", "int8", "w8a8", "int4", *_PALETTES),
        {"os": _one_of(*SYSTEMS), "os_minimum": _VERSION, "compute_units": _UNITS},
        _APPLE,
    ),
    "tvm": FormatFacts(("int8", "fp32", "w8a16", "int4"), {"llvm_cpu": _LLVM_CPU}),
}
"""A new format is one entry here, and an emitter."""
CUDA = FormatFacts(
    ("int8", "fp16", "fp32"),
    {
        **{"llvm_cpu": _LLVM_CPU, "cuda_arch": _CUDA_ARCH, "tensor_cores": _TYPES},
        **dict.fromkeys(("shared_memory_kib", "registers", "max_threads"), _COUNT),
    },
)
"""What a file for an NVIDIA GPU must say, whose format is ``tvm``; other files must not."""

_ALL = tuple(dict.fromkeys(p for f in (*FORMATS.values(), CUDA) for p in f.precisions))
_REQUIRED = {
    **{"description": _STRING, "format": _one_of(*FORMATS), "isa": _STRINGS},
    **{"arch": _one_of(*ISA)},
}
_OPTIONAL = {
    **dict.fromkeys(("cores", "gpu_cores", "neural_engine_cores", "memory_mib"), _COUNT),
    **dict.fromkeys(("memory_bandwidth_gbs", "neural_engine_tops"), _NUMBER),
    **dict.fromkeys(("chip", "os", "os_minimum"), _STRING),
    **{"compute_units": _UNITS, "sources": _TABLE, "os_first": _VERSION},
    **{"neural_engine_generation": _COUNT, "llvm_cpu": _LLVM_CPU, "gpu_memory_mib": _COUNT},
}


def facts_for(data: Mapping[str, Any]) -> FormatFacts | None:
    """Return what a device file must say; ``None`` if its format is unknown."""
    format = data.get("format")
    if "cuda_arch" in data and format == "tvm":
        return CUDA
    return FORMATS.get(format) if isinstance(format, str) else None


def problems(data: Mapping[str, Any]) -> list[str]:
    """Return everything wrong with a device file, so that one edit can mend it."""
    found = dict(_flatten(data))
    required = _required(data)
    wrong = [f"missing key '{key}'" for key in required if key not in found]
    for key, value in found.items():
        kind = _STRING if key.startswith("sources.") else (_OPTIONAL | required).get(key)
        if kind is None:
            wrong.append(f"unknown key '{key}'")
        elif not kind.holds(value):
            wrong.append(f"'{key}' is {value!r}, not {kind.text}")
    return wrong + _wrong_isa(data) + _wrong_processor(data) + _wrong_system(data)


def _wrong_isa(data: Mapping[str, Any]) -> list[str]:
    """Return which words of ``isa`` the architecture does not know."""
    arch, isa = data.get("arch"), data.get("isa")
    if not (isinstance(arch, str) and arch in ISA and _STRINGS.holds(isa)):
        return []
    unknown = [repr(word) for word in isa or () if word not in ISA[arch]]
    names = f"{', '.join(unknown)}, and {arch} has: {', '.join(ISA[arch])}"
    return [f"'isa' names {names}"] if unknown else []


def _wrong_processor(data: Mapping[str, Any]) -> list[str]:
    """Return which keys of a processor have no meaning beside the others."""
    wrong = []
    if "cuda_arch" in data and data.get("format") != "tvm":
        wrong.append("'cuda_arch' needs format = 'tvm', whose precisions are then the GPU's")
    if "llvm_cpu" in data and data.get("arch") == "wasm32":
        wrong.append("'llvm_cpu' is for x86_64 and aarch64, not for wasm32")
    return wrong


def _wrong_system(data: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with an ``os_minimum`` that is a version, for formats that depend on it."""
    format, system, version = (data.get(key) for key in ("format", "os", "os_minimum"))
    if not (isinstance(format, str) and isinstance(system, str) and _VERSION.holds(version)):
        return []
    oldest = FORMATS[format].oldest.get(system) if format in FORMATS else None
    why = refusal(system, str(version), oldest, format) if oldest else None
    return [f"'os_minimum': {why}"] if why else []


def _required(data: Mapping[str, Any]) -> dict[str, Kind]:
    """Return the keys that must be there; of an unknown format, the precisions that the file has."""
    facts = facts_for(data)
    table = data.get("precisions")
    names = tuple(p for p in _ALL if isinstance(table, dict) and p in table)
    needed = facts.precisions if facts else names
    return {
        **_REQUIRED,
        **(facts.required if facts else {}),
        "precision": _one_of(*(needed or _ALL)),
        **{f"precisions.{precision}.fast": _BOOLEAN for precision in needed},
        **{f"precisions.{precision}.why": _STRING for precision in needed},
    }


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
