"""Runtime libraries: the package's own, from wheels, from sources; tools that are missing."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from qcompile.compiler.ir.errors import MissingPackageError, TargetError
from qcompile.targets.tvm import libraries, native

pytest.importorskip("tvm_ffi", reason="apache-tvm-ffi is not installed")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(libraries.WHEELS, raising=False)


@pytest.fixture
def _no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def _on_x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")


def write_wheels(folder: Path, names: tuple[str, ...]) -> None:
    """Write wheels of the installed versions that hold these libraries."""
    folder.mkdir()
    tvm, ffi = libraries.versions()
    for package, version, lib in (("apache_tvm", tvm, "tvm"), ("apache_tvm_ffi", ffi, "tvm_ffi")):
        with zipfile.ZipFile(folder / f"{package}-{version}-x-manylinux_aarch64.whl", "w") as wheel:
            for name in names:
                if (name == "libtvm_ffi.so") == (lib == "tvm_ffi"):
                    wheel.writestr(f"{lib}/lib/{name}", name * 3)
            wheel.writestr(f"{lib}/lib/libtvm_compiler.so", "large")


@pytest.mark.usefixtures("_on_x86")
def test_the_packages_own_libraries() -> None:
    found = libraries.runtime_libraries("x86_64", cuda=True)
    assert [f.name for f in found] == [*libraries.LIBRARIES, libraries.CUDA_LIBRARY]
    for file in found:
        assert file.read_bytes()[:4] == b"\x7fELF"


def test_an_architecture_that_is_not_supported() -> None:
    with pytest.raises(TargetError, match=r"is for x86_64 and aarch64, not for riscv64"):
        libraries.runtime_libraries("riscv64")


@pytest.mark.usefixtures("_on_x86", "_no_tools")
def test_missing_tools_name_their_package(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"apt-get install g\+\+-aarch64-linux-gnu$"):
        libraries.runtime_libraries("aarch64")
    with pytest.raises(TargetError, match=r"^g\+\+, .* not installed: apt-get install g\+\+$"):
        native.build_program(tmp_path, "x86_64")
    with pytest.raises(TargetError, match=r"^qemu-aarch64, .* apt-get install qemu-user$"):
        native.run_program(tmp_path, tmp_path, "aarch64", tmp_path / "i.npz", tmp_path / "o.npz")
    assert not (tmp_path / "lib").exists()


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"qcompile\[tvm\]"):
        libraries.package_folder("tvm")


@pytest.mark.usefixtures("_on_x86")
def test_libraries_from_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = (*libraries.LIBRARIES, libraries.CUDA_LIBRARY)
    write_wheels(tmp_path / "wheels", names)
    monkeypatch.setenv(libraries.WHEELS, str(tmp_path / "wheels"))
    found = libraries.runtime_libraries("aarch64", cuda=True)
    assert [f.read_text() for f in found] == [name * 3 for name in names]
    assert {f.name for f in found[0].parent.iterdir()} == set(names)
    assert tmp_path / "cache" / "qcompile" in found[0].parents
    stamp = found[0].stat().st_mtime_ns
    assert libraries.runtime_libraries("aarch64")[0].stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("_on_x86")
def test_wheels_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(libraries.WHEELS, str(tmp_path))
    version = libraries.versions()[1]
    with pytest.raises(
        TargetError, match=rf"no wheel of apache_tvm_ffi {version}: run pip download"
    ):
        libraries.runtime_libraries("aarch64")

    write_wheels(tmp_path / "half", ("libtvm_ffi.so",))
    monkeypatch.setenv(libraries.WHEELS, str(tmp_path / "half"))
    with pytest.raises(TargetError, match=r"hold no libtvm_runtime.so$"):
        libraries.runtime_libraries("aarch64")

    for wheel in (tmp_path / "half").iterdir():
        wheel.write_bytes(b"PK")
    with pytest.raises(TargetError, match="is damaged; download it again"):
        libraries.runtime_libraries("aarch64")
    assert len(list((tmp_path / "cache" / "qcompile").iterdir())) == 1


@pytest.mark.usefixtures("_on_x86")
def test_wheels_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TargetError, match=r"no sources of libtvm_runtime_cuda.so .* pip download"):
        libraries.runtime_libraries("aarch64", cuda=True)
    write_wheels(tmp_path / "wheels", libraries.LIBRARIES)
    monkeypatch.setenv(libraries.WHEELS, str(tmp_path / "wheels"))
    with pytest.raises(TargetError, match=r"hold no libtvm_runtime_cuda.so$"):
        libraries.runtime_libraries("aarch64", cuda=True)


@pytest.mark.usefixtures("_on_x86")
def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "bin" / "aarch64-linux-gnu-g++"
    tool.parent.mkdir()
    tool.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit 0\n'
        "echo note >&2; echo 'x.cc:1: fatal error: no y.h' >&2; exit 1\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    with pytest.raises(
        TargetError, match=r"aarch64-linux-gnu-g\+\+ failed .* fatal error: no y\.h$"
    ):
        libraries.runtime_libraries("aarch64")
    assert list((tmp_path / "cache" / "qcompile").iterdir()) == []


@pytest.mark.usefixtures("_on_x86")
def test_sources_that_the_package_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "compiler", lambda arch: "true")
    monkeypatch.setattr(libraries, "package_folder", lambda name: tmp_path)
    with pytest.raises(TargetError, match="does not ship the sources tvm_ffi/src"):
        libraries.runtime_libraries("aarch64")
