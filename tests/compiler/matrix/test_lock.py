"""What drifts from the lock, each by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

LOCKED = ("build", "--locked", "--only", "good-x86-avx512-vnni-int8")


def edit(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def _new_row(folder: Path) -> None:
    (folder / "models/data/8.txt").write_text("1\n")


def _fewer_rows(folder: Path) -> None:
    (folder / "models/data/3.txt").unlink()


def _weights(folder: Path) -> None:
    file = folder / "models/weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")


def _option(folder: Path) -> None:
    edit(folder / "qcompile.toml", 'good.py"', 'good.py"\nmin-sqnr = 10')


def _tool(folder: Path) -> None:
    lock = folder / "qcompile.lock"
    data = json.loads(lock.read_text())
    for entry in data["builds"].values():
        entry["tools"]["torch"] = "2.12.0"
        entry["tools"].pop("numpy")
    lock.write_text(json.dumps(data))


def _device(folder: Path) -> None:
    lock = folder / "qcompile.lock"
    data = json.loads(lock.read_text())
    for entry in data["builds"].values():
        entry["device"] = "0" * 64
    lock.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: edit(f / "models/sizes.py", "3", "4"), "models/sizes.py changed"),
        (lambda f: edit(f / "models/good.py", "HERE", "THERE"), "models/good.py changed"),
        (_weights, "models/weights.safetensors changed"),
        (_new_row, "models/data/ changed"),
        (_fewer_rows, "models/data/ changed; models/data/3.txt is missing"),
        (_option, "min-sqnr: none -> 10.0"),
        (_tool, "numpy: none -> "),
        (_tool, "torch: 2.12.0 -> "),
        (_device, "the facts about x86-avx512-vnni changed"),
    ],
)  # fmt: skip
def test_drift(
    project: Any, run: Callable[..., Result], change: Callable[[Path], None], said: str
) -> None:
    change(project.folder)
    before = project.content()
    result = run(*LOCKED)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"error: {project.good} is not as in qcompile.lock: ")
    assert said in lines[0]
    assert lines[1:] == ["error: leave out --locked to build them, and commit the new lock"]
    assert project.content() == before


@pytest.mark.parametrize(
    "name", [".hidden", "build/other.txt", "models/other.py", "qcompile.schema.json"]
)
def test_what_is_no_input(project: Any, run: Callable[..., Result], name: str) -> None:
    (project.folder / name).write_text("other\n")
    result = run(*LOCKED)
    assert result.exit_code == 0, result.stderr
    assert "up to date" in result.stdout


def test_builds_that_are_not_pinned(project: Any, run: Callable[..., Result]) -> None:
    result = run("build", "--locked")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[:2] == [
        f"error: {name} is not in qcompile.lock" for name in (project.broken, project.refused)
    ]


def test_builds_that_are_gone_leave_the_lock(project: Any, run: Callable[..., Result]) -> None:
    edit(project.folder / "qcompile.toml", "models.good", "models.well")
    edit(project.folder / "qcompile.toml", 'model = "good"', 'model = "well"')
    assert run("build", "--only", "broken").exit_code == 2
    assert json.loads((project.folder / "qcompile.lock").read_text())["builds"] == {}
