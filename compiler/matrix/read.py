"""``qcompile.toml`` -> ``Project``; all that is wrong with it is said at once."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qcompile.compiler.ir.errors import ProjectError
from qcompile.compiler.matrix.cells import Cell, cells
from qcompile.compiler.matrix.checks import check
from qcompile.compiler.matrix.positions import Key, positions
from qcompile.compiler.matrix.problems import Problems, explain, place
from qcompile.compiler.matrix.schema import FILE, Settings

_MAX_BYTES = 1 << 20
_TWICE = re.compile("Cannot (declare .* twice|overwrite a value)")
_WHERE = re.compile(r" \(at line (\d+), column (\d+)\)$")


@dataclass(frozen=True)
class Project:
    """A file, read.

    Args:
        root: Its folder; all of its paths are relative to it.
        output: Folder of bundles, relative.
        cells: The builds.
    """

    root: Path
    output: str
    cells: tuple[Cell, ...]

    def bundle(self, cell: Cell) -> Path:
        """Return where a build's bundle lies."""
        return self.root / self.output / f"{cell.name}.qc"


def read(file: Path) -> Project:
    """Read a file.

    Raises:
        ProjectError: It is missing or wrong; a line for each thing.
    """
    return parse(_text(file), file)


def parse(text: str, file: Path) -> Project:
    """Read the text of a file.

    Raises:
        ProjectError: It is wrong; a line for each thing.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(_syntax(file, str(error), text)) from error
    problems = Problems(str(file), positions(text))
    settings = _settings(data, problems)
    root = Path(os.path.realpath(file)).parent
    named = data.get("models")
    check(settings, root, problems, named if isinstance(named, dict) else {})
    problems.check()
    return Project(root, os.path.normpath(settings.output), tuple(cells(settings)))


def _text(file: Path) -> str:
    if file.is_dir():
        raise ProjectError(f"{file} is a folder; give the file in it, as -c {file / FILE}")
    if not file.is_file():
        raise ProjectError(
            f"there is no {file}: write one with `qcompile init`, name it with -c, or give a MODEL"
        )
    if file.stat().st_size > _MAX_BYTES:
        raise ProjectError(f"{file} is larger than {_MAX_BYTES >> 20} MiB: it is no {FILE}")
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProjectError(f"{file} cannot be read as text: {error}") from error


def _syntax(file: Path, said: str, text: str) -> str:
    """Return what tomllib said, with the place in front; what is named twice in words of ours."""
    found = _WHERE.search(said)
    line, column = map(int, found.groups()) if found else (text.count("\n") + 1, 1)
    written = text.split("\n")[line - 1].strip()
    if _TWICE.match(said) and (written.startswith("[") or "=" in written):
        name = written if written.startswith("[") else written.partition("=")[0].rstrip()
        return f"{file}:{line}:1: {name} is there twice: leave one out, or rename it"
    return f"{file}:{line}:{column}: not TOML: {_WHERE.sub('', said)}"


def _settings(data: dict[str, Any], problems: Problems) -> Settings:
    """Return what fits the types; what does not is noted and left out, so that the rest can be checked."""
    dropped: set[Key] = set()
    while True:
        try:
            return Settings.model_validate(data)
        except ValidationError as error:
            explain(error, Settings, problems, dropped)
            for row in error.errors(include_url=False):
                _drop(data, place(row)[:-1] if row["type"] == "missing" else place(row))
                dropped.add(place(row))


def _drop(data: dict[str, Any], path: Key) -> None:
    """Remove a key; of a list that holds something wrong, all of it."""
    table: Any = data
    while isinstance(path[-1], int):
        path = path[:-1]
    for part in path[:-1]:
        if not isinstance(part, int) and part not in table:
            return  # it is gone already
        table = table[part]
    table.pop(path[-1], None)
