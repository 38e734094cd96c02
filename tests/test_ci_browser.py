"""``.ci/browser``: it installs what is missing, and where it cannot it says so and does not fail."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "browser"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder of programs; there are no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "env"):
        (folder / name).symlink_to(str(shutil.which(name)))
    program(folder, "id", "echo 0")
    program(folder, "python", f'echo "python $*" >>{tmp_path}/log')
    return folder


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
    (folder / name).chmod(0o755)


def run(tools: Path) -> str:
    done = subprocess.run(
        [SCRIPT, tools / "python"], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def log(tools: Path) -> list[str]:
    file = tools.parent / "log"
    return file.read_text().splitlines() if file.exists() else []


def test_a_chromium_that_is_there_is_used(tools: Path) -> None:
    program(tools, "chromium", "")
    program(tools, "apt-get", "exit 1")
    assert run(tools) == f"{tools}/chromium and Playwright are here\n"
    (line,) = log(tools)
    assert line.endswith("--constraint constraints.txt axe-playwright-python playwright")


def test_debians_is_installed(tools: Path) -> None:
    program(tools, "apt-get", f'echo "apt-get $*" >>{tools.parent}/log')
    assert "are here" in run(tools)
    assert [line.split()[0] for line in log(tools)] == ["apt-get", "apt-get", "python"]
    assert log(tools)[1].endswith("install --no-install-recommends chromium")


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("id", "echo 1000", "Chromium is not here, and only root can install it"),
        ("id", "echo 0", "Chromium is not here, and there is no apt-get to install it with"),
        ("apt-get", "exit 100", "Chromium could not be installed"),
    ],
)
def test_without_chromium(tools: Path, name: str, script: str, said: str) -> None:
    program(tools, name, script)
    assert run(tools) == f"{said}; the tests in a browser will be skipped\n"
    assert log(tools) == []


def test_without_playwright(tools: Path) -> None:
    program(tools, "chromium", "")
    program(tools, "python", "exit 1")
    assert (
        run(tools) == "Playwright could not be installed; the tests in a browser will be skipped\n"
    )
