"""What a library is compiled for, a CPU and perhaps a GPU, in TVM's and LLVM's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qcompile.targets.device import Device
from qcompile.targets.device_schema import ISA
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.kernels.choice import CpuKernels, CudaKernels, Kernels
from qcompile.targets.tvm.kernels.cuda import Grid
from qcompile.targets.tvm.kernels.instructions import Instructions, for_cpu
from qcompile.targets.tvm.kernels.vectors import Vectors, for_floats
from qcompile.targets.tvm.tools import load_tvm

GENERIC = {"x86_64": "x86-64-v2", "aarch64": "generic"}
"""What LLVM schedules for if the CPU has no name."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU.

    Args:
        arch: CUDA's word, ``sm_80``.
        shared_memory_kib: That a block of threads may ask for.
        registers: Of 32 bits, of a block.
        max_threads: Of a block.
    """

    arch: str
    shared_memory_kib: int
    registers: int
    max_threads: int

    @staticmethod
    def of(device: Device) -> Gpu | None:
        """Return a device's GPU if TVM compiles for it."""
        if device.cuda_arch is None:
            return None
        assert device.shared_memory_kib is not None
        assert device.registers is not None
        assert device.max_threads is not None
        limits = device.shared_memory_kib, device.registers, device.max_threads
        return Gpu(device.cuda_arch, *limits)

    def target(self, host: Any) -> Any:
        """Return TVM's target beside that of the CPU."""
        # Schedules of TVM ask for no more shared memory than every block has.
        limits = {
            "max_threads_per_block": self.max_threads,
            "max_shared_memory_per_block": min(self.shared_memory_kib, 48) * 1024,
            "registers_per_block": self.registers,
        }
        described = {"kind": "cuda", "arch": self.arch, **limits, "host": host}
        return load_tvm().target.Target(described)


@dataclass(frozen=True)
class Machine:
    """A computer under Linux.

    Args:
        arch: ``x86_64`` or ``aarch64``.
        features: Instruction sets that may be used, of ``device_schema.ISA``.
        cpu: LLVM's name.
        gpu: What computes, if that is not the CPU.
        stands_in: Whether the CPU computes what a GPU does, its threads one after the other.
    """

    arch: str
    features: tuple[str, ...]
    cpu: str
    gpu: Gpu | None = None
    stands_in: bool = False

    @staticmethod
    def of(device: Device) -> Machine:
        """Return a device's CPU."""
        known = tuple(word for word in ISA[device.arch] if word in device.isa)
        named = device.llvm_cpu not in (None, "native")
        cpu = str(device.llvm_cpu) if named else GENERIC[device.arch]
        return Machine(device.arch, known, cpu, Gpu.of(device))

    @staticmethod
    def read(options: Mapping[str, Any]) -> Machine:
        """Return what ``options`` said."""
        gpu = Gpu(**options["cuda"]) if "cuda" in options else None
        features = tuple(options["cpu_features"])
        stands_in = options.get("stands_in", False)
        return Machine(options["arch"], features, options["llvm_cpu"], gpu, stands_in)

    def options(self) -> dict[str, Any]:
        """Return what the runtime must know, for the manifest."""
        said: dict[str, Any] = {
            "arch": self.arch,
            "cpu_features": list(self.features),
            "device": "cpu" if self.gpu is None else "cuda",
            "llvm_cpu": self.cpu,
        }
        if self.gpu is not None:
            said["cuda"] = asdict(self.gpu)
        return {**said, "stands_in": True} if self.stands_in else said

    @property
    def stand_in(self) -> Machine:
        """The CPU alone, computing what the GPU does."""
        return replace(self, gpu=None, stands_in=True)

    @property
    def instructions(self) -> Instructions:
        """Return what integer kernels for the CPU are written for.

        Raises:
            TargetError: It has nothing that they are written for.
        """
        return for_cpu(self.arch, frozenset(self.features))

    @property
    def vectors(self) -> Vectors | None:
        """What float kernels are written for; there are none for a GPU."""
        if self.gpu is not None or self.stands_in:
            return None
        return for_floats(self.arch, frozenset(self.features))

    def kernels(self) -> Kernels:
        """Return the kernels for ops on codes.

        Raises:
            TargetError: There are none for this CPU.
        """
        if self.gpu is not None or self.stands_in:
            return CudaKernels(Grid(on_gpu=not self.stands_in))
        return CpuKernels(self.instructions)

    def target(self) -> Any:
        """Return TVM's target: these instruction sets and no others.

        Raises:
            TargetError: The native runtime is not made for the architecture.
        """
        known = ISA[self.arch]
        host = {
            "kind": "llvm",
            "mtriple": libraries.triple(self.arch),
            "mcpu": self.cpu,
            "mattr": [f"{'+' if word in self.features else '-'}{word}" for word in known],
            "num-cores": 1,
        }
        return load_tvm().target.Target(host) if self.gpu is None else self.gpu.target(host)
