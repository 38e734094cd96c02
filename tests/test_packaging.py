"""What is shipped is what lies in the tree, and it works without the tree."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "targets", "runtime")
OWN = ("__init__.py", "__main__.py", "py.typed")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder)
    return folder


def call(*command: str | Path, folder: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tree() -> set[str]:
    """The files that belong in a wheel, by their place there."""
    files = {f"qcompile/{name}" for name in OWN}
    for folder in FOLDERS:
        found = (
            file
            for file in (ROOT / folder).rglob("*")
            if file.is_file() and file.parent.name != "__pycache__"
        )
        files |= {f"qcompile/{file.relative_to(ROOT).as_posix()}" for file in found}
    return files


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_the_dev_extra_is_the_dev_group() -> None:
    found = project()
    assert found["project"]["optional-dependencies"]["dev"] == found["dependency-groups"]["dev"]


def test_constraints_pin_all_that_is_named_in_pyproject() -> None:
    found = project()
    extras = found["project"]["optional-dependencies"]
    named = [*found["project"]["dependencies"], *found["build-system"]["requires"]]
    named += [
        r
        for extra in ("onnx", "coreml", "dev", "sentence-embeddings", "remote", "browser", "ray")
        for r in extras[extra]
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    pinned = [name_of(pin) for pin in pins]
    assert len(pinned) == len(set(pinned))
    assert {name_of(requirement) for requirement in named} <= set(pinned)


@pytest.mark.slow
def test_the_wheel_holds_the_tree(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {n for n in names if ".dist-info/" not in n} == tree()
    for file in ("devices/x86-avx512-vnni.toml", "devices/apple-m2.toml"):
        assert f"qcompile/targets/{file}" in names
    templates = {Path(n).name for n in names if "/coreml/swift_templates/" in n}
    assert templates == {"Model.swift", "Package.swift", "VectorTests.swift", "Vectors.swift"}
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)


@pytest.mark.slow
def test_the_wheel_works_in_a_clean_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    python = clean_environment(tmp_path / "env")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--no-deps", "--no-index", wheel)
    place = call(python, "-c", "import qcompile.runtime as r; print(r.__file__)", folder=tmp_path)
    assert Path(place.strip()).is_relative_to(tmp_path / "env")
    assert "raspberry-pi-5" in call(python, "-m", "qcompile", "targets", folder=tmp_path)
    model = ROOT / "examples" / "resnet.py"
    command = tmp_path / "env" / "bin" / "qcompile"
    call(command, model, "--target", "host", "-o", tmp_path / "small.qc", folder=tmp_path)
    assert zipfile.is_zipfile(tmp_path / "small.qc" / "run.pyz")


@pytest.mark.slow
def test_the_sdist_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt"} <= {
        file.name for file in source.iterdir()
    }
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, folder=source)
    (first,), (second,) = built.glob("*.whl"), tmp_path.glob("*.whl")
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as two:
        assert {n: one.read(n) for n in one.namelist()} == {n: two.read(n) for n in two.namelist()}


def clean_environment(folder: Path) -> Path:
    """Return the Python of an environment with our dependencies, but not with us."""
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    # A line in a .pth file adds that folder alone: the editable install in it stays unseen.
    (packages / "dependencies.pth").write_text(
        sysconfig.get_path("purelib") + "\n", encoding="utf-8"
    )
    return folder / "bin" / "python"
