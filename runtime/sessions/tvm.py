"""TVM's virtual machine, on CPUs and NVIDIA GPUs."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from qcompile.runtime.errors import BundleError, MissingPackageError

UNPINNED = 0
"""To TVM's pool: let the system choose the cores."""
ALIGNMENT = 64
"""Bytes; TVM's tensors begin at multiples of it."""
_FLAGS = {
    **{"avx512vnni": "avx512_vnni", "avxvnni": "avx_vnni", "amx-tile": "amx_tile"},
    **{"amx-int8": "amx_int8", "amx-bf16": "amx_bf16"},
    **{"neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp"},
}
"""Linux's words in /proc/cpuinfo for LLVM's, where they differ."""


_loaded: dict[Path, tuple[int, int]] = {}
"""Which file was at a path when it was first loaded: device and inode."""


class Engine:
    """A library of TVM.

    Args:
        artifact: ``model.so``.
        options: ``arch``, ``cpu_features`` and ``device`` that it was compiled for.
        threads: Of TVM's pool, which the whole process shares; the integer kernels use one.
    """

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        check_machine(str(options.get("arch", "")), options.get("cpu_features", ()))
        try:
            import tvm
            import tvm_ffi
            from tvm.runtime.vm import VirtualMachine
        except ImportError as error:
            raise MissingPackageError("apache-tvm", "tvm") from error
        tvm_ffi.get_global_func("runtime.config_threadpool")(UNPINNED, threads)
        self._gpu = _gpu(tvm) if options.get("device") == "cuda" else None
        devices = tvm.cpu() if self._gpu is None else [self._gpu, tvm.cpu()]
        try:
            machine = VirtualMachine(_library(tvm, artifact), devices)
            self._main = machine["main"]
        except Exception as error:
            reason = (str(error).splitlines() or ["no reason given"])[-1]
            raise BundleError(f"tvm {tvm.__version__} refuses it: {reason}") from error
        self._tensor = tvm.runtime.from_dlpack if self._gpu is None else self._on_gpu
        self._copy = tvm.runtime.tensor
        self.version: str = tvm.__version__

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the model's order."""
        found = self._main(*(self._tensor(_aligned(value)) for value in inputs))
        values = [found] if hasattr(found, "numpy") else found
        return [value.numpy() for value in values]

    def _on_gpu(self, value: Any) -> Any:
        return self._copy(value, self._gpu)


def _library(tvm: Any, artifact: Path) -> Any:
    """Load a library; one in the place of another that this process has loaded, from a copy.

    The linker knows libraries by path, and would give the other one again.
    """
    status = artifact.stat()
    file = status.st_dev, status.st_ino
    if _loaded.setdefault(artifact.resolve(), file) == file:
        return tvm.runtime.load_module(str(artifact))
    with TemporaryDirectory(prefix="qcompile-") as folder:
        return tvm.runtime.load_module(shutil.copy(artifact, folder))


def _gpu(tvm: Any) -> Any:
    """Return the first NVIDIA GPU.

    Raises:
        BundleError: TVM can use none.
    """
    found = tvm.cuda(0)
    if not found.exist:
        raise BundleError(
            "TVM finds no NVIDIA GPU, which it was compiled for: check nvidia-smi and that the CUDA 13 "
            "runtime is installed, or use a bundle for the CPU"
        )
    return found


def _aligned(value: Any) -> Any:
    """Return an array as kernels read it: contiguous, and where TVM would have put it."""
    if value.flags.c_contiguous and value.flags.writeable and value.ctypes.data % ALIGNMENT == 0:
        return value
    room = np.empty(value.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + value.nbytes].view(value.dtype).reshape(value.shape)
    copy[...] = value
    return copy


def check_machine(arch: str, features: Collection[str]) -> None:
    """Raise where the library would die of an unknown instruction.

    Raises:
        BundleError: Another architecture, or instruction sets are missing; names all of them.
    """
    if platform.machine() != arch:
        raise BundleError(f"it is for {arch}, and this machine is {platform.machine()}")
    found = _cpu_flags()
    missing = [name for name in features if found and _FLAGS.get(name, name) not in found]
    if missing:
        raise BundleError(
            f"this CPU has no {', '.join(missing)}, which the library was compiled for; "
            "build the model for this machine: --target host"
        )


def _cpu_flags() -> set[str]:
    """Return the CPU's features in Linux's words; nothing where the system does not say."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return set()
    words = (line.partition(":") for line in file.read_text(encoding="utf-8").splitlines())
    return {
        flag
        for key, _, rest in words
        if key.strip() in ("flags", "Features")
        for flag in rest.split()
    }
