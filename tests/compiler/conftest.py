"""A tiny model file, the bundle built from it, and the command line in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from qcompile.compiler.cli import cli

TINY = """
import torch
from torch import nn


def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def images(count, seed):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def inputs():
    return {"input": images(2, 1)}


def dynamic_shapes():
    return {"input": {0: torch.export.Dim("batch", min=1, max=64)}}


def calibration():
    return {"input": images(32, 2)}


def evaluate(predict):
    logits = predict({"input": images(32, 3).numpy()})["output"]
    return {"top1": 100.0 * float((logits.argmax(1) == 1).mean())}
"""

Run = Callable[..., Result]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder that holds ``tiny.py``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text(TINY)
    return tmp_path


@pytest.fixture
def run() -> Run:
    """Run ``qcompile`` with arguments; stdout and stderr are apart."""

    def invoke(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="qcompile")

    return invoke


@pytest.fixture
def refuses(run: Run) -> Callable[..., str]:
    """Run ``qcompile``, which must refuse in one sentence and leave the folder as it was."""

    def check(*arguments: str | Path) -> str:
        before = listing(Path.cwd())
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert listing(Path.cwd()) == before
        assert result.stdout == ""
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert "Traceback" not in result.stderr
        assert "defect" not in result.stderr, result.stderr
        return result.stderr.removeprefix("error: ").strip()

    return check


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, which the tests of a module share."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An INT8 bundle of the tiny model, which no test may change."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "tiny.py").write_text(TINY)
    arguments = [str(folder / "tiny.py"), "--target", "x86-avx512-vnni"]
    result = CliRunner().invoke(cli, [*arguments, "-o", str(folder / "tiny.qc")])
    assert result.exit_code == 0, result.output
    return folder / "tiny.qc"


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be spoiled."""
    return Path(shutil.copytree(built, tmp_path / "copy.qc"))


def listing(folder: Path) -> dict[str, int]:
    """Every path below a folder with its size."""
    return {
        str(Path(root, name).relative_to(folder)): os.lstat(Path(root, name)).st_size
        for root, folders, files in os.walk(folder)
        for name in [*folders, *files]
        if "__pycache__" not in f"{root}/{name}"
    }
