"""The example repository of an app, copied, and its bundles, each built once."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
Bundle = Callable[[str], Path]


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the app beside the models that it names."""
    ignored = shutil.ignore_patterns("build", "qcompile.lock", "__pycache__", "language_model")
    folder = tmp_path_factory.mktemp("repository") / "examples"
    return Path(shutil.copytree(EXAMPLES, folder, ignore=ignored)) / "app"


@pytest.fixture(scope="session")
def bundle(app: Path) -> Bundle:
    """Return a bundle of the app by its name; the app's own file says how it is built."""

    @functools.cache
    def build(name: str) -> Path:
        command = [sys.executable, "-P", "-m", "qcompile", "build", "--only", name]
        done = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return app / "build" / f"{name}.qc"

    return build
