"""A project with a matrix that was built once, and how it is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.matrix.cells import Cell
from qcompile.compiler.matrix.read import parse

TOML = """
[models.good]
path = "models/good.py"
[models.broken]
path = "models/broken.py"

[matrix]
targets = ["x86-avx512-vnni"]
precisions = ["int8", "fp16"]
exclude = [{ model = "broken", precision = "fp16" }]
[[matrix.override]]
model = "good"
precision = "fp16"
min-sqnr = 500
"""
SMALL = """
[models.good]
path = "models/good.py"
[matrix]
targets = ["x86-avx512-vnni"]
precisions = ["int8", "fp32"]
"""
MODEL = """
from pathlib import Path
import torch
from safetensors.torch import load_file
from torch import nn
from sizes import WIDTH

HERE = Path(__file__).parent


def model():
    print("what a model file prints is no report")
    layer = nn.Linear(WIDTH, 2)
    layer.load_state_dict(load_file(HERE / "weights.safetensors"))
    return layer


def inputs():
    return {"input": torch.ones(1, WIDTH)}


def calibration():
    rows = [float(file.read_text()) for file in sorted((HERE / "data").glob("*.txt"))]
    return {"input": torch.tensor(rows).reshape(-1, 1).expand(-1, WIDTH).numpy()}
"""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, which their builds share."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCOMPILE_CACHE_DIR", str(folder))
        yield folder


class Project:
    """A folder with a ``qcompile.toml``, and its builds by name."""

    good, refused, broken = (
        "good-x86-avx512-vnni-int8", "good-x86-avx512-vnni-fp16", "broken-x86-avx512-vnni-int8",
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of ``qcompile``."""
        return [sys.executable, "-P", "-m", "qcompile", *arguments]

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run ``qcompile`` in a process of its own; return what it printed to stdout and stderr."""
        environment = os.environ | {"XDG_CACHE_HOME": str(self.folder.parent / "user")}
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def results(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Return the rows of ``--json``, by name."""
        stdout, stderr = self.run(*arguments, "--json", code=code)
        assert stderr == ""
        return {row["name"]: row for row in json.loads(stdout)["builds"]}

    def content(self, below: str = ".") -> dict[str, bytes]:
        """Return the bytes of all files, but for Python's own."""
        files = [Path(root, f) for root, _, names in os.walk(self.folder / below) for f in names]
        return {
            str(f.relative_to(self.folder)): f.read_bytes()
            for f in files
            if "__pycache__" not in f.parts
        }


def write_project(folder: Path, toml: str = TOML) -> None:
    """Write the file and its models."""
    import torch
    from safetensors.torch import save_file

    models = folder / "models"
    (models / "data").mkdir(parents=True)
    (folder / "qcompile.toml").write_text(toml)
    (models / "good.py").write_text(MODEL)
    (models / "broken.py").write_text("def model():\n    raise RuntimeError('no weights')\n"
                                      "def inputs():\n    return {}\n")  # fmt: skip
    (models / "sizes.py").write_text("WIDTH = 3\n")
    for index in range(8):
        (models / "data" / f"{index}.txt").write_text(f"{index / 4 - 1}\n")
    weights = {"weight": torch.linspace(-1, 1, 6).reshape(2, 3), "bias": torch.tensor([0.5, -0.25])}
    save_file(weights, models / "weights.safetensors")


@pytest.fixture(scope="session")
def first_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, dict[str, Any]]:
    """A project that was built, and what that gave; no test may change it."""
    project = Project(tmp_path_factory.mktemp("project"))
    write_project(project.folder)
    return project, project.results("build", "--jobs", "2", code=2)


@pytest.fixture
def project(
    first_build: tuple[Project, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    """A copy of it, to be changed; the current folder."""
    folder = Path(shutil.copytree(first_build[0].folder, tmp_path / "copy"))
    monkeypatch.chdir(folder)
    return Project(folder)


@pytest.fixture
def small_project(tmp_path: Path) -> Project:
    """A project of two good builds, which nobody has built."""
    write_project(tmp_path / "small", SMALL)
    return Project(tmp_path / "small")


@pytest.fixture
def cells_of(tmp_path: Path) -> Callable[[str], tuple[Cell, ...]]:
    """Return the builds of a text whose models are ``a.py`` and ``b.py``."""
    (tmp_path / "a.py").touch()
    (tmp_path / "b.py").touch()
    return lambda text: parse(text, tmp_path / "qcompile.toml").cells
