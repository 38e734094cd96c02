"""Kernels compiled for the CPUs whose instructions run here, called with numpy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError
from qcompile.runtime.sessions.tvm import check_machine
from qcompile.targets.tvm.kernels import instructions
from qcompile.targets.tvm.kernels.choice import CpuKernels, CudaKernels, Kernels
from qcompile.targets.tvm.kernels.cuda import Grid
from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.vectors import Vectors
from qcompile.targets.tvm.machine import Machine

AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512vnni")
EDGE = 64
"""Bytes before and after an output that a kernel must leave alone; TVM wants outputs aligned to it."""


@dataclass(frozen=True)
class Cpu:
    """Kernels, and a machine here that runs them.

    Args:
        kernels: For certain instructions.
        machine: For which they are compiled.
    """

    kernels: Kernels
    machine: Machine

    @property
    def dtype(self) -> Any:
        """Of the activations."""
        return np.int8 if self.kernels.signed else np.uint8

    @property
    def name(self) -> str:
        """Of the activations' type."""
        return "int8" if self.kernels.signed else "uint8"

    @property
    def limits(self) -> tuple[int, int]:
        """The least code and the greatest."""
        return (-128, 127) if self.kernels.signed else (0, 255)

    @property
    def most(self) -> int:
        """The greatest weight; the least is its negative."""
        return int(2 ** (self.kernels.weight_bits - 1)) - 1

    def call(self, kernel: Any, *arrays: NDArray[Any]) -> NDArray[Any]:
        """Compile a kernel and call it; see ``called``."""
        return called(self.machine, kernel, *arrays)


@dataclass(frozen=True)
class FloatCpu:
    """A machine here that float kernels are compiled for."""

    machine: Machine

    @property
    def vectors(self) -> Vectors:
        """Its registers."""
        return self.machine.vectors

    def call(self, kernel: Any, *arrays: NDArray[Any]) -> NDArray[Any]:
        """Compile a kernel and call it; see ``called``."""
        return called(self.machine, kernel, *arrays)


def called(machine: Machine, kernel: Any, *arrays: NDArray[Any]) -> NDArray[Any]:
    """Compile a kernel and call it; return its last argument, which it fills.

    Args:
        machine: For which.
        kernel: A TIR function.
        arrays: Its arguments; the last is for the result.
    """
    import tvm

    module = tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=machine.target())
    memory, output = _guarded(arrays[-1])
    given = [tvm.runtime.tensor(a) for a in arrays[:-1]]
    built["main"](*given, tvm.runtime.from_dlpack(output))
    assert (memory[:EDGE] == 0xA5).all(), "written before the output"
    assert (memory[EDGE + output.nbytes :] == 0xA5).all(), "written after the output"
    return output.copy()


def _guarded(like: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Return memory full of one byte, and an array in it that is neither at its start nor at its end."""
    raw = np.full(like.nbytes + 3 * EDGE, 0xA5, np.uint8)
    start = -raw.ctypes.data % EDGE
    memory = raw[start : start + like.nbytes + 2 * EDGE]
    return memory, memory[EDGE : EDGE + like.nbytes].view(like.dtype).reshape(like.shape)


def _cpu(found: Instructions, features: tuple[str, ...], name: str) -> Cpu:
    return Cpu(CpuKernels(found), Machine("x86_64", features, name))


CPUS = {
    "avx512vnni": _cpu(instructions.VNNI_512, AVX512, "cascadelake"),
    "avxvnni": _cpu(instructions.VNNI_256, (*AVX2, "avxvnni"), "alderlake"),
    "avx512vnni, 256 bits": _cpu(instructions.VNNI_256, AVX512, "cascadelake"),
    "avx2": _cpu(instructions.MADD_256, AVX2, "haswell"),
    "a GPU's threads": Cpu(CudaKernels(Grid(on_gpu=False)), Machine("x86_64", (), "x86-64-v2")),
}


@pytest.fixture(scope="module", params=CPUS)
def cpu(request: pytest.FixtureRequest) -> Cpu:
    """One of the CPUs whose instructions this one has."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    found = CPUS[request.param]
    try:
        check_machine(found.machine.arch, found.machine.features)
    except BundleError as error:
        pytest.skip(str(error))
    return found


FLOAT_CPUS = {
    "avx512": Machine("x86_64", AVX512, "cascadelake"),
    "avx2": Machine("x86_64", AVX2, "haswell"),
    "no fma": Machine("x86_64", (), "x86-64-v2"),
}


@pytest.fixture(scope="module", params=FLOAT_CPUS)
def float_cpu(request: pytest.FixtureRequest) -> FloatCpu:
    """One of the CPUs whose registers this one has."""
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    found = FLOAT_CPUS[request.param]
    try:
        check_machine(found.arch, found.features)
    except BundleError as error:
        pytest.skip(str(error))
    return FloatCpu(found)


@pytest.fixture(scope="session")
def equal_codes() -> Callable[[Any, Any], None]:
    """Compare codes: one apart in at most one of a thousand, where a float lies between two."""

    def compare(found: Any, expected: Any) -> None:
        distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        assert distance.max() <= 1
        assert (distance != 0).sum() <= max(1, distance.size // 1000)

    return compare
