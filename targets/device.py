"""Facts about a device: instruction set, memory, and which precisions run fast there.

A target as the user names it is a file in `devices/`, a path to a file of the user's own, or
`host`, which is detected. A file holds facts and where they were read; it never holds behaviour.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.cpu_facts import CPU_FORMATS, PrecisionFact, onnx_default, precisions_of
from qcompile.targets.device_schema import FORMATS, facts_for, problems
from qcompile.targets.systems import refusal

HOST = "host"
"""The device that is this machine."""
_DEVICES = Path(__file__).parent / "devices"
_SAME = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "neon", "dotprod", "i8mm")
# What /proc/cpuinfo on Linux and sysctl on macOS call a feature -> what LLVM calls it.
_LLVM_NAME = {
    **{name: name for name in (*_SAME, "bf16", "sve")},
    **{"avx2_0": "avx2", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni"},
    **{"amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16"},
    **{"asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16", "fp16": "fullfp16"},
}


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device; a figure nobody could source is None.

    `isa` has LLVM's names; `memory_bandwidth_gbs` is the theoretical peak, 10**9 bytes a second.
    `os_minimum` is the system whose features an artifact may use, `os_first` the one that the device
    was sold with. `neural_engine_generation` counts Apple's compiler targets: the M1's, H13, is 13.
    `llvm_cpu` is LLVM's name of the CPU, ``native`` for the one at hand, and never has an instruction
    set that `isa` names none of. With a `cuda_arch` the precisions are the GPU's, `llvm_cpu` and `isa`
    are of the CPU beside it, and the limits of a block of threads are known: `shared_memory_kib` to one
    that asks for more than 48, `registers` of 32 bits, `max_threads`.
    """

    name: str
    description: str
    format: str
    arch: str
    isa: tuple[str, ...]
    precision: str  # the default: fastest at full quality
    precisions: Mapping[str, PrecisionFact]
    chip: str | None = None
    compute_units: tuple[str, ...] = ()
    cores: int | None = None
    gpu_cores: int | None = None
    neural_engine_cores: int | None = None
    neural_engine_generation: int | None = None
    neural_engine_tops: float | None = None
    memory_mib: int | None = None
    memory_bandwidth_gbs: float | None = None
    llvm_cpu: str | None = None
    cuda_arch: str | None = None
    gpu_memory_mib: int | None = None
    shared_memory_kib: int | None = None
    registers: int | None = None
    max_threads: int | None = None
    tensor_cores: tuple[str, ...] = ()  # what they multiply
    os: str | None = None
    os_first: str | None = None
    os_minimum: str | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that there are facts for: the file's, and those that follow from the CPU."""
        known = {"onnx": bool(self.isa), "tvm": self.llvm_cpu is not None}
        return (self.format, *(f for f in CPU_FORMATS if known[f] and f != self.format))

    def facts(self, format: str) -> Mapping[str, PrecisionFact]:
        """Return what is known of each precision in a format: the file's facts, or the CPU's.

        Raises:
            TargetError: The format needs facts that this device has not got; names devices that do.
        """
        if format == self.format:
            return self.precisions
        if format in self.formats:
            return CPU_FORMATS[format].precisions(self.isa)
        possible = [n for n in device_names() if n != HOST and format in load_device(n).formats]
        raise TargetError(
            f"target {self.name!r} has no facts for {format}; these do: {', '.join(possible)}; "
            f"it has facts for {', '.join(self.formats)}; "
            f"a file of your own with format = {format!r} has what it says (docs/add-a-device.md)"
        )

    def default_precision(self, format: str) -> str:
        """Return the fastest precision at full quality in a format; raises as ``facts`` does."""
        if format == self.format:
            return self.precision
        self.facts(format)
        return CPU_FORMATS[format].default(self.isa)

    def with_os_minimum(self, version: str) -> Device:
        """Return this device with another oldest system, whose features an artifact may use.

        Raises:
            TargetError: The format does not depend on it, no such system exists, or it is too old.
        """
        oldest = FORMATS[self.format].oldest.get(self.os or "")
        if self.os is None or oldest is None:
            raise TargetError(
                f"target {self.name!r}: its format, {self.format}, does not depend on the system"
            )
        if why := refusal(self.os, version, oldest, self.format):
            raise TargetError(f"target {self.name!r}: {why}")
        return dataclasses.replace(self, os_minimum=version)


def device_names() -> list[str]:
    """Return the names of all shipped devices, and `host`, sorted."""
    return sorted([*(path.stem for path in _DEVICES.glob("*.toml")), HOST])


def load_device(name: str) -> Device:
    """Return the device called `name`: a shipped one, `host`, or a path that ends in `.toml`."""
    if name == HOST:
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
        name=HOST,
        description=f"this machine ({arch}, {system})",
        format="onnx",
        arch=arch,
        isa=isa,
        precision=onnx_default(isa),
        precisions=precisions_of(isa),
        llvm_cpu="native",
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
    if wrong := problems(data):
        raise TargetError(f"target file '{path}': {'; '.join(wrong)} (docs/add-a-device.md)")
    for key in ("isa", "compute_units", "tensor_cores"):
        data[key] = tuple(data.get(key, ()))
    facts = facts_for(data)
    assert facts is not None
    data["precisions"] = {p: PrecisionFact(**data["precisions"][p]) for p in facts.precisions}
    return Device(name=path.stem, **data)
