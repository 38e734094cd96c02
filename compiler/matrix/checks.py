"""What types cannot say of ``qcompile.toml``: names that exist, once each, and paths with something there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.matrix.cells import RANDOM, cells, is_module, matches, possible
from qcompile.compiler.matrix.options import PATH_OPTIONS, Options
from qcompile.compiler.matrix.positions import Key
from qcompile.compiler.matrix.problems import Problems, dotted, nearest
from qcompile.compiler.matrix.schema import Settings
from qcompile.targets.device import device_names, load_device
from qcompile.targets.formats import emitter_names

_OF_ONE_MACHINE = "a path of one machine: write it relative to the file's folder"


def check(settings: Settings, root: Path, problems: Problems, named: Mapping[str, Any]) -> None:
    """Note all that is wrong.

    Args:
        settings: What could be read.
        root: The file's folder.
        problems: Takes what is found.
        named: The models that the file has, also those that could not be read.
    """
    whole = not problems.found
    _check_paths(settings, root, problems)
    _check_names(settings, problems, named)
    _check_matrix(settings, problems)
    _check_targets(settings, root, problems, whole=whole)
    if not problems.found:
        _check_builds(settings, problems)


def _check_paths(settings: Settings, root: Path, problems: Problems) -> None:
    for key, path in _paths(settings):
        if os.path.isabs(path):
            problems.add(key, f"{dotted(key)} is {path}, {_OF_ONE_MACHINE}")
        elif key != ("output",) and "tune-database" not in key and not (root / path).exists():
            problems.add(key, f"{dotted(key)}: there is no {path}")
    if (root / settings.output).exists() and not (root / settings.output).is_dir():
        problems.add(("output",), f"output: {settings.output} is a file, and must be a folder")


def _paths(settings: Settings) -> Iterator[tuple[Key, str]]:
    """Give each path of the file with its key."""
    yield ("output",), settings.output
    tables: list[tuple[Key, Options]] = [(("defaults",), settings.defaults)]
    for name, model in settings.models.items():
        tables.append((("models", name), model))
        yield from ((("models", name, "files", i), path) for i, path in enumerate(model.files))
        if not is_module(model.path):
            yield ("models", name, "path"), model.path
    tables += [(("targets", name), target) for name, target in settings.targets.items()]
    tables += [(("matrix", "override", i), o) for i, o in enumerate(settings.matrix.override)]
    for key, table in tables:
        for option in (*PATH_OPTIONS, "tune_database"):
            path = getattr(table, option)
            if path is not None and path != RANDOM:
                yield (*key, option.replace("_", "-")), path


def _check_names(settings: Settings, problems: Problems, named: Mapping[str, Any]) -> None:
    matrix = settings.matrix
    lists: list[tuple[Key, Sequence[str]]] = [
        (("matrix", "models"), matrix.models or ()),
        (("matrix", "targets"), matrix.targets),
        (("matrix", "precisions"), matrix.precisions or ()),
    ]
    for table, tables in (("models", settings.models), ("targets", settings.targets)):
        lists += [((table, name, "precisions"), t.precisions or ()) for name, t in tables.items()]
    for key, words in lists:
        for word, count in Counter(words).items():
            if count > 1:
                again = len(words) - 1 - list(reversed(words)).index(word)
                problems.add((*key, again), f"{dotted(key)} names {word!r} twice")
    for index, model in enumerate(matrix.models or ()):
        if model not in named:
            key = ("matrix", "models", index)
            problems.add(key, f"there is no [models.{model}]; {nearest(model, named)}")


def _check_matrix(settings: Settings, problems: Problems) -> None:
    words = [*device_names(), *emitter_names(), *settings.targets]
    for index, name in enumerate(settings.matrix.targets):
        if name not in words:
            problems.add(("matrix", "targets", index), f"there is no target {name!r}; "
                         f"{nearest(name, words)}; a device file needs a table [targets.NAME] with "
                         'device = "FILE"')  # fmt: skip


def _check_targets(settings: Settings, root: Path, problems: Problems, *, whole: bool) -> None:
    """Note what is wrong with tables of targets; ``whole``: the matrix holds all that the file says."""
    for name, target in settings.targets.items():
        key: Key = ("targets", name, "device") if target.device else ("targets", name)
        if whole and name not in settings.matrix.targets:
            problems.add(("targets", name), f"[targets.{name}] is of no target of [matrix]")
        device = target.device or name
        if os.path.isabs(device):
            problems.add(key, f"targets.{name}.device is {device}, {_OF_ONE_MACHINE}")
        elif device not in emitter_names():
            try:
                load_device(str(root / device) if device.endswith(".toml") else device)
            except TargetError as error:
                problems.add(key, str(error).replace(f"{root}{os.sep}", ""))


_OF_PRECISIONS = (
    "; precision names builds here, and precisions are listed in [matrix], [models.NAME] or "
    "[targets.NAME]"
)


def _check_builds(settings: Settings, problems: Problems) -> None:
    everything, found = list(possible(settings)), cells(settings)
    for kind in ("exclude", "override"):
        for index, where in enumerate(getattr(settings.matrix, kind)):
            key: Key = ("matrix", kind, index)
            if where.model is None and where.target is None and where.precision is None:
                problems.add(key, f"{dotted(key)} has none of model, target and precision")
            elif everything and not any(matches(where, c) for c in everything):
                said = f"{dotted(key)} fits no build; there are: {', '.join(c.name for c in everything)}"
                problems.add(key, said + (_OF_PRECISIONS if where.precision else ""))
    for name, count in Counter(c.name for c in found).items():
        if count > 1:
            problems.add(
                ("matrix",), f"{count} builds have the name {name!r}: rename a model or target"
            )
    if not found and not problems.found:
        problems.add(("matrix",), f"there is nothing to build: {_lacking(settings, everything)}")


def _lacking(settings: Settings, everything: Sequence[object]) -> str:
    if not settings.models:
        return 'give each model a table [models.NAME] with path = "FILE"'
    if not settings.matrix.targets:
        return '[matrix] needs targets = ["host", ...]'
    return "exclude takes every build" if everything else "[matrix] has no models"
