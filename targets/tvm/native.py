"""The C++ program of a bundle: ``run``, its sources in ``native/``, TVM's runtime in ``lib/``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from qcompile.compiler.ir.errors import TargetError
from qcompile.runtime.errors import BundleError
from qcompile.targets.cache import cached, digest
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.libraries import Progress

PROGRAM = "run"
SHIPPED = ("CMakeLists.txt", "qcompile.hpp", "run.cpp")
_FLAGS = ("-std=c++17", "-O2", "-s", "-Wl,--build-id=none", "-Wl,--no-as-needed")


def build_program(
    folder: Path, arch: str, *, has_cuda: bool = False, progress: Progress | None = None
) -> None:
    """Write ``run``, ``native/`` and ``lib/`` into a bundle's folder.

    The program is compiled once for a compiler and a version of TVM, and copied from the cache then:
    equal bytes for equal sources and versions.

    Args:
        folder: Of the bundle.
        arch: ``x86_64`` or ``aarch64``.
        has_cuda: With the library for NVIDIA GPUs, which the program opens when a model asks for it.
        progress: See ``runtime_libraries``.

    Raises:
        MissingPackageError: TVM is not installed.
        TargetError: A compiler is missing, or fails.
        OutputError: The cache cannot be written.
    """
    found = libraries.runtime_libraries(arch, has_cuda, progress)
    program = _program(arch, found[: len(libraries.LIBRARIES)])
    for name in ("lib", "native"):
        (folder / name).mkdir(exist_ok=True)
    for library in found:
        shutil.copyfile(library, folder / "lib" / library.name)
    for licence in libraries.licences():
        shutil.copyfile(licence, folder / "lib" / licence.name)
    for name in SHIPPED:
        shutil.copyfile(libraries.SOURCES / name, folder / "native" / name)
    shutil.copyfile(program, folder / PROGRAM)
    (folder / PROGRAM).chmod(0o755)


def run_program(
    program: Path, bundle: Path, arch: str, inputs: Path, outputs: Path, *, cpu: str | None = None
) -> None:
    """Run a bundle on arrays with the C++ program: as it is, or in an emulator for another architecture.

    Args:
        program: Folder that holds ``run``, mostly the bundle itself.
        bundle: Folder with ``manifest.json`` and the library.
        arch: That both were built for.
        inputs: ``.npz`` keyed by input name, not compressed.
        outputs: The ``.npz`` that is written.
        cpu: qemu's name of the CPU to emulate, ``cortex-a72``; by default one that can do everything.

    Raises:
        TargetError: The emulator is not installed.
        BundleError: The program refused the bundle or the inputs, or died.
    """
    before = emulator(arch, cpu)
    files = ["--input", str(inputs), "--output", str(outputs)]
    command = [*before, str(program / PROGRAM), str(bundle), *files, "--calls", "0"]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        text = result.stderr.decode("utf-8", "replace").strip()
        lines = text.splitlines() or [f"exit code {result.returncode}"]
        where = f" under {before[0]}" if before else ""
        raise BundleError(f"{PROGRAM} failed{where}: {lines[-1].removeprefix('error: ')}")


def emulator(arch: str, cpu: str | None = None) -> list[str]:
    """Return what must stand before a program of this architecture; nothing if it runs as it is.

    Raises:
        TargetError: The emulator or the libraries of that architecture are not installed.
    """
    if libraries.is_native(arch):
        return []
    root = Path("/usr") / libraries.triple(arch)
    command = f"qemu-{arch}"
    if shutil.which(command) is None:
        raise TargetError(
            f"{command}, which runs programs of {arch} here, is not installed: apt-get install qemu-user"
        )
    if not root.is_dir():
        package = f"g++-{libraries.triple(arch).replace('_', '-')}"
        raise TargetError(
            f"{root}, with the C++ library of {arch}, is missing: apt-get install {package}"
        )
    return [command, *(["-cpu", cpu] if cpu else []), "-L", str(root)]


def _program(arch: str, found: list[Path]) -> Path:
    tool = libraries.compiler(arch)
    sources = [(libraries.SOURCES / name).read_bytes() for name in SHIPPED]
    version = libraries.run_tool([tool, "--version"])
    key = digest([*libraries.versions(), version, *_FLAGS, *sources])
    name = f"run-{libraries.versions()[0]}-{arch}-{key}"
    return cached(name, lambda folder: _compile(folder, tool, found)) / PROGRAM


def _compile(folder: Path, tool: str, found: list[Path]) -> None:
    ffi = libraries.package_folder("tvm_ffi")
    prefixes = [f"-ffile-prefix-map={p}=." for p in (ffi.parent, libraries.SOURCES)]
    source = libraries.SOURCES / "run.cpp"
    compiled: list[str | Path] = [tool, *_FLAGS, *prefixes, f"-I{ffi / 'include'}", source, *found]
    libraries.run_tool([*compiled, "-ldl", "-Wl,-rpath,$ORIGIN/lib", "-o", folder / PROGRAM])
