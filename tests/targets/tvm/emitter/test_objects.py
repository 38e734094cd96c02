"""Objects for apps that link themselves: linked as the bundle's library was, they are that library."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.driver import BuildOptions
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.tvm.objects import ARCHIVE, archive
from qcompile.targets.tvm.program import LIBRARY, LINK


def test_objects_are_those_of_the_library(build_for: Any, tmp_path: Path) -> None:
    bundle = build_for(tmp_path, "x86-avx512-vnni", objects=True)
    assert ARCHIVE in bundle.manifest.files
    with tarfile.open(bundle.path / ARCHIVE) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "objects", filter="data")
    assert names
    assert all(name.endswith(".o") for name in names)
    subprocess.run(
        ["g++", "-shared", "-fPIC", "-o", "model.so", *names, *LINK],
        cwd=tmp_path / "objects",
        check=True,
    )
    linked = (tmp_path / "objects" / "model.so").read_bytes()
    assert linked == (bundle.path / LIBRARY).read_bytes()


def test_an_archive_says_nothing_of_this_machine(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "lib0.o").write_bytes(b"code")
        archive([tmp_path / folder / "lib0.o"], tmp_path / folder / ARCHIVE)
    assert (tmp_path / "a" / ARCHIVE).read_bytes() == (tmp_path / "b" / ARCHIVE).read_bytes()


def test_other_formats_have_none() -> None:
    with pytest.raises(TargetError, match=r"^onnx has no objects: leave out --objects$"):
        BuildOptions(target="host", format="onnx", objects=True).resolve()
