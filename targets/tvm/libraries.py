"""TVM's runtime libraries for the device: the package's own, or made once for another architecture.

The package ``apache-tvm`` holds ``libtvm_runtime.so`` for the machine that it is installed on, and the
runtime's C++ sources. For another architecture these are compiled with Debian's cross compiler
(``runtime/native/tvm_stream.h`` stands for the headers that the package leaves out), or the libraries
are taken from wheels of that architecture, if ``QCOMPILE_TVM_WHEELS`` names a folder that holds them.
The network is never used. What was made lies in ``$XDG_CACHE_HOME/qcompile``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import qcompile.runtime
from qcompile.compiler.ir.errors import MissingPackageError, TargetError
from qcompile.targets.cache import cached, digest

Progress = Callable[[int, int], None]

SOURCES = Path(qcompile.runtime.__file__).parent / "native"
LIBRARIES = ("libtvm_ffi.so", "libtvm_runtime.so")
CUDA_LIBRARY = "libtvm_runtime_cuda.so"
TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
WHEELS = "QCOMPILE_TVM_WHEELS"

# Of tvm/src/runtime: all that a Relax executable on a CPU calls; no RPC, key-value caches or disco.
_RUNTIME = (
    *("const_loader_module", "cpu_device_api", "device_api", "file_utils", "logging", "module"),
    *("memory/memory_manager", "tensor", "thread_pool", "threading_backend", "timer"),
    *("workspace_pool", "vm/builtin", "vm/bytecode", "vm/executable", "vm/vm"),
)
_LEFT_OUT = (
    *("tvm/support/io.h", "tvm/support/serializer.h", "tvm/support/cuda/nvtx.h"),
    *("support/base64.h", "support/bytes_io.h", "support/utils.h"),
)
_COMPILE = (
    *("-std=c++17", "-O2", "-fPIC", "-DNDEBUG", "-ffunction-sections", "-fdata-sections"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
    *("-DTVM_FFI_USE_LIBBACKTRACE=0", "-DTVM_FFI_BACKTRACE_ON_SEGFAULT=0"),
)
LINK = ("-s", "-Wl,--build-id=none", "-Wl,--gc-sections", "-Wl,--as-needed")


def runtime_libraries(
    arch: str, cuda: bool = False, progress: Progress | None = None
) -> list[Path]:
    """Return the libraries that a bundle for this architecture carries.

    Args:
        arch: ``x86_64`` or ``aarch64``, under Linux.
        cuda: Also the one for CUDA devices.
        progress: Called with how many files were compiled, of how many.

    Raises:
        MissingPackageError: TVM is not installed.
        TargetError: No libraries for that architecture, and no compiler to make them.
        OutputError: The cache cannot be written.
    """
    names = (*LIBRARIES, CUDA_LIBRARY) if cuda else LIBRARIES
    triple(arch)
    if is_native(arch):
        return [_own(name) for name in names]
    if folder := os.environ.get(WHEELS):
        return _from_wheels(Path(folder), arch, names)
    if cuda:
        check_cuda(arch)
    made = _from_sources(arch, progress or (lambda done, total: None))
    return [made / name for name in names]


def check_cuda(arch: str) -> None:
    """Raise where there is no runtime library for NVIDIA GPUs beside this CPU.

    Raises:
        TargetError: It is in no package that is at hand.
    """
    if not is_native(arch) and not os.environ.get(WHEELS):
        raise TargetError(
            f"TVM's package has no sources of {CUDA_LIBRARY} to compile for {arch}: {_ask_wheels(arch)}"
        )


def licences() -> list[Path]:
    """Return the texts that go with the libraries: Apache 2.0, 4 (a) and (d)."""
    folder = package_folder("tvm")
    return [f for f in (folder / "LICENSE", folder / "NOTICE") if f.is_file()]


def is_native(arch: str) -> bool:
    """Whether programs of this architecture run here as they are."""
    return platform.system() == "Linux" and platform.machine() == arch


def triple(arch: str) -> str:
    """Return the name that compilers give to Linux on an architecture.

    Raises:
        TargetError: The native runtime is not made for it.
    """
    if arch not in TRIPLES:
        raise TargetError(f"the native runtime is for {' and '.join(TRIPLES)}, not for {arch}")
    return TRIPLES[arch]


def compiler(arch: str) -> str:
    """Return the C++ compiler for an architecture.

    Raises:
        TargetError: It is not installed.
    """
    command = "g++" if is_native(arch) else f"{triple(arch)}-g++"
    if shutil.which(command) is None:
        package = "g++" if command == "g++" else f"g++-{triple(arch).replace('_', '-')}"
        raise TargetError(
            f"{command}, which compiles for {arch}, is not installed: apt-get install {package}"
        )
    return command


def package_folder(name: str) -> Path:
    """Return where ``tvm`` or ``tvm_ffi`` lies, without importing it.

    Raises:
        MissingPackageError: It is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("apache-tvm", "tvm")
    return Path(next(iter(spec.submodule_search_locations)))


def versions() -> tuple[str, str]:
    """Return the versions of TVM and of its FFI."""
    try:
        found = [importlib.metadata.version(p) for p in ("apache-tvm", "apache-tvm-ffi")]
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingPackageError("apache-tvm", "tvm") from error
    return found[0], found[1]


def run_tool(command: Sequence[str | Path]) -> str:
    """Run a compiler; return what it prints.

    Raises:
        TargetError: It failed; with its first error.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.splitlines() or ["no message"]
        error = next((line for line in lines if "error" in line), lines[-1])
        raise TargetError(f"{command[0]} failed with TVM {versions()[0]}: {error}")
    return result.stdout


def _own(name: str) -> Path:
    folder = package_folder("tvm_ffi" if name == "libtvm_ffi.so" else "tvm")
    if not (folder / "lib" / name).is_file():
        raise TargetError(
            f"the installed TVM has no lib/{name}; install apache-tvm's wheel for Linux"
        )
    return folder / "lib" / name


def _from_sources(arch: str, progress: Progress) -> Path:
    tool = compiler(arch)
    stream = (SOURCES / "tvm_stream.h").read_bytes()
    key = digest([*versions(), run_tool([tool, "--version"]), *_COMPILE, *LINK, *_RUNTIME, stream])
    name = f"tvm-{versions()[0]}-{arch}-{key}"
    return cached(name, lambda folder: _compile(folder, tool, progress))


def _compile(folder: Path, tool: str, progress: Progress) -> None:
    ffi, runtime = _sources()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        objects = {source: work / f"{index}.o" for index, source in enumerate([*ffi, *runtime])}
        _compile_each([tool, *_flags(work)], objects, progress)
        link = [tool, "-shared", *LINK, "-Wl,--no-undefined"]
        first, second = (folder / name for name in LIBRARIES)
        run_tool([*link, f"-Wl,-soname,{first.name}", *(objects[s] for s in ffi), "-o", first])
        origin = ["-Wl,-rpath,$ORIGIN", f"-Wl,-soname,{second.name}"]
        run_tool([*link, *origin, *(objects[s] for s in runtime), first, "-o", second])


def _compile_each(command: Sequence[str], objects: Mapping[Path, Path], progress: Progress) -> None:
    """Compile on all cores; the first error, or Ctrl-C, ends the rest."""

    def compile_one(source: Path) -> None:
        run_tool([*command, "-c", source, "-o", objects[source]])

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        for done, _ in enumerate(pool.map(compile_one, objects), 1):
            progress(done, len(objects))
    finally:
        pool.shutdown(cancel_futures=True)


def _sources() -> tuple[list[Path], list[Path]]:
    """Return the sources of the two libraries."""
    root = package_folder("tvm_ffi") / "src" / "ffi"
    ffi = sorted([*root.glob("*.cc"), *(root / "extra").glob("*.cc")])
    runtime = [package_folder("tvm") / "src" / "runtime" / f"{name}.cc" for name in _RUNTIME]
    if not ffi or (missing := [f.name for f in runtime if not f.is_file()]):
        lacking = ", ".join(missing) if ffi else "tvm_ffi/src"
        raise TargetError(
            f"TVM {versions()[0]} does not ship the sources {lacking}; use the version that qcompile pins"
        )
    return ffi, runtime


def _flags(work: Path) -> list[str]:
    """Return the compiler's flags; make the headers that the package leaves out in ``work``."""
    headers = work / "headers"
    for name in _LEFT_OUT:
        (headers / name).parent.mkdir(parents=True, exist_ok=True)
        (headers / name).write_text('#include "tvm_stream.h"\n', encoding="ascii")
    (headers / "a" / "b").mkdir(parents=True)  # "../../support/x.h" starts from here
    packages = package_folder("tvm_ffi"), package_folder("tvm")
    folders = [*(p / "include" for p in packages), SOURCES]
    folders += [headers, headers / "a", headers / "a" / "b"]
    prefixes = [f"-ffile-prefix-map={p.parent}=." for p in (*packages, SOURCES)]
    return [*_COMPILE, *prefixes, f"-ffile-prefix-map={work}=.", *(f"-I{f}" for f in folders)]


def _from_wheels(folder: Path, arch: str, names: Sequence[str]) -> list[Path]:
    wheels = [_wheel(folder, package, arch) for package in ("apache_tvm_ffi", "apache_tvm")]
    key = digest([f"{w.name}:{w.stat().st_size}:{w.stat().st_mtime_ns}" for w in wheels])
    made = cached(f"tvm-{versions()[0]}-{arch}-wheel-{key}", lambda to: _unpack(wheels, to))
    if missing := [name for name in names if not (made / name).is_file()]:
        raise TargetError(f"the wheels of TVM in {folder} hold no {' and no '.join(missing)}")
    return [made / name for name in names]


def _wheel(folder: Path, package: str, arch: str) -> Path:
    version = dict(zip(("apache_tvm", "apache_tvm_ffi"), versions(), strict=True))[package]
    found = sorted(folder.glob(f"{package}-{version}-*{arch}.whl"))
    if not found:
        raise TargetError(f"{folder} has no wheel of {package} {version}: {_ask_wheels(arch)}")
    return found[0]


def _unpack(wheels: Sequence[Path], folder: Path) -> None:
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                for entry in archive.namelist():
                    name = entry.rpartition("/lib/")[2]
                    if name in (*LIBRARIES, CUDA_LIBRARY):
                        (folder / name).write_bytes(archive.read(entry))
        except zipfile.BadZipFile as error:
            raise TargetError(f"{wheel} is damaged; download it again") from error


def _ask_wheels(arch: str) -> str:
    tvm, ffi = versions()
    return (
        f"run pip download --no-deps --only-binary :all: --platform manylinux_2_28_{arch} "
        f"apache-tvm=={tvm} apache-tvm-ffi=={ffi} -d FOLDER and set {WHEELS}=FOLDER"
    )
