"""CUDA code inside of a library that is made without a GPU.

Where no CUDA driver is at hand, TVM leaves C++ source in the library, to be compiled when it is loaded; the
device has no compiler. Here nvcc compiles it, and the binary takes the source's place in the blob that TVM
packs (its format: ``CUDAModuleNode::SaveToBytes`` and ``BytesOutStream`` of TVM: numbers of 64 bits, text
after its length).
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.tvm.tools import load_tvm

SYMBOL = "__tvm_ffi__library_bin"
OPTIONS = ("-O3", "-diag-suppress", "177")
"""TVM names what it does not use, 177."""
EXACT = "-fmad=false"
"""Codes are rounded as on a CPU: after the product, and after the sum."""
BINARY = "fatbin"


def compiler() -> str:
    """Return NVIDIA's compiler.

    Raises:
        TargetError: It is not installed.
    """
    if shutil.which("nvcc") is None:
        raise TargetError(
            "nvcc, which compiles for NVIDIA GPUs, is not installed: get the CUDA toolkit, 12 or later "
            "(https://developer.nvidia.com/cuda-downloads), and put its bin folder into PATH"
        )
    return "nvcc"


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that TVM can use."""
    return bool(load_tvm().cuda(0).exist)


def compile_source(
    source: str, arch: str, options: Sequence[str] = (), kind: str = BINARY
) -> bytes:
    """Compile CUDA C++.

    Args:
        source: As TVM writes it.
        arch: ``sm_80``.
        options: More of them, ``EXACT``.
        kind: ``fatbin``, which holds PTX for later GPUs too, or ``ptx``.

    Raises:
        TargetError: nvcc is missing, or refuses the source or the architecture.
    """
    virtual = arch.replace("sm_", "compute_")
    codes = f"[{arch},{virtual}]" if kind == BINARY else virtual
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "kernels.cu").write_text(source, encoding="utf-8")
        target = ["-gencode", f"arch={virtual},code={codes}", f"-{kind}", "kernels.cu"]
        command = [compiler(), *OPTIONS, *options, *target, "-o", "kernels.out"]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
            raise TargetError(f"nvcc cannot compile for {arch}: {lines[0]}")
        return (folder / "kernels.out").read_bytes()


def pack_imports(
    arch: str, options: Sequence[str], module: Any, is_system: bool, prefix: str, folder: str
) -> str:
    """Write the assembly of what a module imports, its CUDA code compiled; return its file.

    A hook of TVM's ``Module.export_library``.
    """
    from tvm.runtime import _ffi_api

    text = _ffi_api.ModulePackImportsToC(module, is_system, prefix)
    blob = bytes(int(number, 16) for number in re.findall(r"0x([0-9a-f]{1,2})", text))
    for part in _of_cuda(module):
        source = part.inspect_source()
        blob = replaced(blob, source.encode(), compile_source(source, arch, options))
    binary, file = Path(folder) / "imports.bin", Path(folder) / "imports.S"
    binary.write_bytes(blob)
    file.write_text(
        f'.section .rodata\n.balign 64\n.global {prefix}{SYMBOL}\n{prefix}{SYMBOL}:\n.incbin "{binary}"\n'
        '.section .note.GNU-stack,"",%progbits\n',
        encoding="utf-8",
    )
    return str(file)


def source_of(module: Any) -> str:
    """Return the CUDA C++ that a module imports."""
    return "\n".join(part.inspect_source() for part in _of_cuda(module))


def _of_cuda(module: Any) -> list[Any]:
    below = [found for part in module.imports for found in _of_cuda(part)]
    return [module, *below] if module.kind == "cuda" else below


def replaced(blob: bytes, source: bytes, binary: bytes) -> bytes:
    """Return TVM's blob with a binary for a source.

    Args:
        blob: What ``ModulePackImportsToC`` makes: its length, then modules; a module of CUDA is ``"cuda"``,
            the length of its bytes, and in these its format, a table, and the code as text.
        source: The code, which ends the module.
        binary: What to run.
    """
    start = blob.index(_text(source))
    end = start + len(_text(source))
    kind = _text(b"cuda")
    # The kind, the length of the rest up to the code's end, and the format, which is a source's.
    for at in (match.start() for match in re.finditer(re.escape(kind), blob[:start])):
        inner = at + len(kind) + 8
        if blob[at + len(kind) : inner] == _number(end - inner) and blob[inner:].startswith(kind):
            table = blob[inner + len(kind) : start]
            module = _text(BINARY.encode()) + table + _text(binary)
            changed = blob[8 : inner - 8] + _text(module) + blob[end:]
            return _number(len(changed)) + changed
    raise AssertionError("TVM packs modules of CUDA in another way than it did")


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _text(value: bytes) -> bytes:
    return _number(len(value)) + value
