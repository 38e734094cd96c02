"""The builds of a file: models x targets x precisions, without what is excluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from qcompile.compiler.ir.errors import ProjectError
from qcompile.compiler.matrix.options import PATH_OPTIONS
from qcompile.compiler.matrix.problems import nearest
from qcompile.compiler.matrix.schema import Settings, Target, Where

RANDOM = "random"
"""What ``calibrate`` may say instead of a path."""

NO_PRECISIONS: Sequence[str | None] = (None,)


@dataclass(frozen=True)
class Cell:
    """One build.

    Args:
        name: Of the bundle, ``mobilenet-apple-m2-int8``.
        model: Its name in the file.
        target: As the matrix names it.
        precision: Of the list; ``None`` for the device's own.
        path: MODEL, as the command line takes it.
        files: Inputs that the file names, besides those that options name.
        flags: What is said of the build, ``target`` and ``precision`` among it.
    """

    name: str
    model: str
    target: str
    precision: str | None
    path: str
    files: tuple[str, ...]
    flags: Mapping[str, Any]

    @property
    def inputs(self) -> list[str]:
        """The paths that the file names."""
        named = [self.flags.get(option) for option in PATH_OPTIONS]
        given = [path for path in named if path is not None and path != RANDOM]
        return sorted({*given, *self.files, *([] if is_module(self.path) else [self.path])})


def is_module(path: str) -> bool:
    """Return whether a model is ``package.module:factory``."""
    return ":" in path and "/" not in path


def possible(settings: Settings) -> Iterator[Cell]:
    """Give all builds, those that are excluded too, in the file's order."""
    matrix = settings.matrix
    for model in dict.fromkeys(settings.models if matrix.models is None else matrix.models):
        if model not in settings.models:
            continue
        for target in dict.fromkeys(matrix.targets):
            for precision in dict.fromkeys(_precisions(settings, model, target)):
                yield _cell(settings, model, target, precision)


def cells(settings: Settings) -> list[Cell]:
    """Return the builds."""
    matrix = settings.matrix
    return [c for c in possible(settings) if not any(matches(w, c) for w in matrix.exclude)]


def matches(where: Where, cell: Cell) -> bool:
    """Return whether a build fits all patterns of a table."""
    pairs = (
        (where.model, cell.model),
        (where.target, cell.target),
        (where.precision, cell.precision or ""),
    )
    return all(pattern is None or fnmatchcase(text, pattern) for pattern, text in pairs)


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Return the builds that a user names: by model, target or their own names.

    Raises:
        ProjectError: A word names none.
    """
    words = {c.name: {c.name, c.model, c.target} for c in cells}
    known = {word for names in words.values() for word in names}
    if unknown := sorted(set(only) - known):
        lines = [f"--only {word} names no build; {nearest(word, known)}" for word in unknown]
        raise ProjectError("\n".join(lines))
    return [c for c in cells if not only or words[c.name] & set(only)]


def _precisions(settings: Settings, model: str, target: str) -> Sequence[str | None]:
    tables = (settings.models[model], settings.targets.get(target, Target()), settings.matrix)
    return next((t.precisions for t in tables if t.precisions), NO_PRECISIONS)


def _cell(settings: Settings, model: str, target: str, precision: str | None) -> Cell:
    own, place = settings.models[model], settings.targets.get(target, Target())
    name = "-".join(filter(None, (model, target, precision)))
    flags = settings.defaults.flags() | own.flags() | place.flags()
    flags |= {"target": place.device or target}
    if precision is not None:
        flags["precision"] = precision
    cell = Cell(name, model, target, precision, own.path, tuple(own.files), flags)
    for override in settings.matrix.override:
        if matches(override, cell):
            flags |= override.flags()
    return cell
