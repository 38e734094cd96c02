"""The CPU that a library is compiled for, in TVM's and LLVM's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.targets.device import Device
from qcompile.targets.device_schema import ISA
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.kernels.instructions import Instructions, for_cpu
from qcompile.targets.tvm.tools import load_tvm

GENERIC = {"x86_64": "x86-64-v2", "aarch64": "generic"}
"""What LLVM schedules for if the CPU has no name."""


@dataclass(frozen=True)
class Machine:
    """A CPU under Linux.

    Args:
        arch: ``x86_64`` or ``aarch64``.
        features: Instruction sets that may be used, of ``device_schema.ISA``.
        cpu: LLVM's name.
    """

    arch: str
    features: tuple[str, ...]
    cpu: str

    @staticmethod
    def of(device: Device) -> Machine:
        """Return a device's CPU."""
        known = tuple(word for word in ISA[device.arch] if word in device.isa)
        named = device.llvm_cpu not in (None, "native")
        return Machine(device.arch, known, str(device.llvm_cpu) if named else GENERIC[device.arch])

    @staticmethod
    def read(options: Mapping[str, Any]) -> Machine:
        """Return what ``options`` said."""
        return Machine(options["arch"], tuple(options["cpu_features"]), options["llvm_cpu"])

    def options(self) -> dict[str, Any]:
        """Return what the runtime must know, for the manifest."""
        return {"arch": self.arch, "cpu_features": list(self.features), "llvm_cpu": self.cpu}

    @property
    def instructions(self) -> Instructions:
        """What the kernels are written for."""
        return for_cpu(self.arch, frozenset(self.features))

    def target(self) -> Any:
        """Return TVM's target: these instruction sets and no others.

        Raises:
            TargetError: The native runtime is not made for the architecture.
        """
        known = ISA[self.arch]
        return load_tvm().target.Target(
            {
                "kind": "llvm",
                "mtriple": libraries.triple(self.arch),
                "mcpu": self.cpu,
                "mattr": [f"{'+' if word in self.features else '-'}{word}" for word in known],
                "num-cores": 1,
            }
        )
