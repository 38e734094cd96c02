"""Facts about a device: instruction set, memory, and which precisions run fast there.

A target as the user names it is a file in `devices/`, a path to a file of the user's own, or
`host`, which is detected. A file holds facts and where they were read; it never holds behaviour.
"""

from __future__ import annotations

import difflib
import math
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import TargetError

PRECISIONS = ("int8", "fp16", "fp32", "w8a16")
ARCHITECTURES = ("x86_64", "aarch64", "wasm32")
_DEVICES = Path(__file__).parent / "devices"
_ARCH, _PRECISION = (f"one of {', '.join(names)}" for names in (ARCHITECTURES, PRECISIONS))
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "a string": lambda v: isinstance(v, str),
    "a list of strings": lambda v: isinstance(v, list) and all(isinstance(i, str) for i in v),
    "a table": lambda v: isinstance(v, dict),
    "true or false": lambda v: isinstance(v, bool),
    "a whole number above 0": lambda v: type(v) is int and v > 0,
    "a number above 0": lambda v: type(v) in (int, float) and 0 < v < math.inf,
    _ARCH: lambda v: v in ARCHITECTURES,
    _PRECISION: lambda v: v in PRECISIONS,
}
_REQUIRED = {
    **{"description": "a string", "format": "a string", "isa": "a list of strings"},
    **{"arch": _ARCH, "precision": _PRECISION},
    **{f"precisions.{precision}.fast": "true or false" for precision in PRECISIONS},
    **{f"precisions.{precision}.why": "a string" for precision in PRECISIONS},
}
_OPTIONAL = {
    **dict.fromkeys(("cores", "memory_mib"), "a whole number above 0"),
    **{"memory_bandwidth_gbs": "a number above 0", "sources": "a table"},
    **dict.fromkeys(("os", "os_minimum"), "a string"),
}
_SAME = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "neon", "dotprod", "i8mm")
# What /proc/cpuinfo on Linux and sysctl on macOS call a feature -> what LLVM calls it.
_LLVM_NAME = {
    **{name: name for name in (*_SAME, "bf16", "sve")},
    **{"avx2_0": "avx2", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni"},
    **{"amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16"},
    **{"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16", "fp16": "fullfp16"},
}


@dataclass(frozen=True)
class PrecisionFact:
    """Whether a precision runs fast on a device, or merely runs, and why."""

    fast: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device; a figure nobody could source is None.

    `isa` has LLVM's names; `memory_bandwidth_gbs` is the theoretical peak, 10**9 bytes a second.
    """

    name: str
    description: str
    format: str
    arch: str
    isa: tuple[str, ...]
    precision: str  # the default: fastest at full quality
    precisions: Mapping[str, PrecisionFact]
    cores: int | None = None
    memory_mib: int | None = None
    memory_bandwidth_gbs: float | None = None
    os: str | None = None
    os_minimum: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)


def device_names() -> list[str]:
    """Return the names of all shipped devices, and `host`, sorted."""
    return sorted([*(path.stem for path in _DEVICES.glob("*.toml")), "host"])


def load_device(name: str) -> Device:
    """Return the device called `name`: a shipped one, `host`, or a path that ends in `.toml`."""
    if name == "host":
        return host_device()
    if name.endswith(".toml"):
        return _read(Path(name))
    names = device_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        nearest = f"nearest: {', '.join(near)}; " if near else ""
        raise TargetError(f"no target {name!r}; {nearest}`qcompile targets` lists all {len(names)}")
    return _read(_DEVICES / f"{name}.toml")


def host_device() -> Device:
    """Return what can be detected of the machine this runs on."""
    machine, system = platform.machine().lower(), platform.system()
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if arch not in ("x86_64", "aarch64"):
        raise TargetError(f"target 'host': no facts about {arch!r}; name a target instead")
    isa = _host_isa()
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return Device(
        name="host",
        description=f"this machine ({arch}, {system})",
        format="onnx",
        arch=arch,
        isa=isa,
        precision="int8" if {"avx2", "neon"} & set(isa) else "fp32",
        precisions=precisions_of(isa),
        cores=os.cpu_count(),
        memory_mib=pages * os.sysconf("SC_PAGE_SIZE") // 2**20 if pages else None,
        os=system.lower(),
    )


def isa_from_listing(text: str) -> tuple[str, ...]:
    """Return LLVM's names of the features in a /proc/cpuinfo, or in what sysctl printed."""
    words: set[str] = set()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key in ("flags", "Features"):
            words.update(value.split())
        elif value == "1":
            words.add(key.rpartition(".")[2].removeprefix("FEAT_").lower())
    return tuple(dict.fromkeys(llvm for word, llvm in _LLVM_NAME.items() if word in words))


def precisions_of(isa: Collection[str]) -> dict[str, PrecisionFact]:
    """Return what ONNX Runtime's CPU kernels make of each precision with these instructions."""
    int8 = (
        ("amx-int8", True, "AMX TDPBUSD multiplies tiles of u8 by s8"),
        ("avx512vnni", True, "VPDPBUSD sums four u8 by s8 products in 32 bits"),
        ("avxvnni", True, "VPDPBUSD sums four u8 by s8 products in 32 bits"),
        ("i8mm", True, "SMMLA and SDOT, int8 matrix and dot products"),
        ("dotprod", True, "SDOT and UDOT sum four 8-bit products in 32 bits"),
        ("avx2", True, "VPMADDUBSW beats float; it saturates, so weights should use 7 bits"),
        ("neon", False, "no dot product: SMLAL widens each product, the gain is small"),
    )
    known = [PrecisionFact(fast, why) for name, fast, why in int8 if name in isa]
    return {
        "int8": known[0] if known else PrecisionFact(False, "no SIMD kernel known"),
        "fp16": PrecisionFact(False, "many operators cast to float and back; half the bytes"),
        "fp32": PrecisionFact(True, "float vector arithmetic"),
        "w8a16": PrecisionFact(False, "a smaller file; the arithmetic stays float"),
    }


def _host_isa() -> tuple[str, ...]:
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        return isa_from_listing(cpuinfo.read_text(errors="replace"))
    if sysctl := shutil.which("sysctl"):
        listing = subprocess.run([sysctl, "hw.optional"], capture_output=True, text=True)
        return isa_from_listing(listing.stdout)
    return ()


def _read(path: Path) -> Device:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TargetError(f"target file '{path}' cannot be read: {error}") from error
    if wrong := _problems(data):
        raise TargetError(f"target file '{path}': {'; '.join(wrong)} (docs/add-a-device.md)")
    data["isa"] = tuple(data["isa"])
    data["precisions"] = {p: PrecisionFact(**data["precisions"][p]) for p in PRECISIONS}
    return Device(name=path.stem, **data)


def _problems(data: Mapping[str, Any]) -> list[str]:
    """Return everything wrong with a device file, so that one edit can mend it."""
    found = dict(_flatten(data))
    wrong = [f"missing key '{key}'" for key in _REQUIRED if key not in found]
    for key, value in found.items():
        kind = "a string" if key.startswith("sources.") else (_REQUIRED | _OPTIONAL).get(key)
        if kind is None:
            wrong.append(f"unknown key '{key}'")
        elif not _CHECKS[kind](value):
            wrong.append(f"'{key}' is {value!r}, not {kind}")
    return wrong


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
