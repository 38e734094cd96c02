"""A first ``qcompile.toml``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.matrix.cells import is_module
from qcompile.compiler.matrix.read import Project, parse

_HEAD = """# Builds of this project. `qcompile check` prints the plan; `qcompile build` builds what changed.
# `qcompile schema > qcompile.schema.json` is for editors: #:schema ./qcompile.schema.json
"""


def text(
    folder: Path,
    models: Sequence[str],
    targets: Sequence[str],
    precisions: Sequence[str],
    defaults: Mapping[str, Any],
) -> str:
    """Return the text of a file.

    Args:
        folder: Where it is to be; paths become relative to it.
        models: As the command line takes MODEL.
        targets: Devices, ``host``, formats or device files.
        precisions: The devices' own if there are none.
        defaults: Options of all builds, by the file's keys.
    """
    parts = [_HEAD]
    if defaults:
        parts += [
            "[defaults]",
            *(f"{key} = {_value(value)}" for key, value in defaults.items()),
            "",
        ]
    for name, path in _named(models).items():
        shown = path if is_module(path) else relative(path, folder)
        parts += [f"[models.{_key(name)}]", f"path = {_value(shown)}", ""]
    named = {_named_target(target): target for target in targets}
    for name, target in named.items():
        if name != target:
            parts += [
                f"[targets.{_value(name)}]",
                f"device = {_value(relative(target, folder))}",
                "",
            ]
    parts += ["[matrix]", f"targets = {_value(list(named))}"]
    if precisions:
        parts.append(f"precisions = {_value(list(precisions))}")
    return "\n".join(parts) + "\n"


def create(file: Path, content: str) -> Project:
    """Write a file that is right, where there is none.

    Raises:
        OutputError: There is one already, or it cannot be written.
        ProjectError: What it would say is wrong; nothing was written.
    """
    refuse_existing(file)
    project = parse(content, file)
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(content)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {os.strerror(error.errno or 0)}") from error
    return project


def refuse_existing(file: Path) -> None:
    """Refuse to write a file that is there.

    Raises:
        OutputError: It is.
    """
    if file.exists() or file.is_symlink():
        raise OutputError(f"{file} exists and is not replaced: edit it, or give another -c")


def relative(path: str, folder: Path) -> str:
    """Return a path as a file in a folder names it."""
    return Path(os.path.relpath(path, folder)).as_posix()


def _named(models: Sequence[str]) -> dict[str, str]:
    """Return models by names of their own."""
    found: dict[str, str] = {}
    for path in models:
        base = path.rpartition(":")[0].rpartition(".")[2] if is_module(path) else Path(path).stem
        name = base = re.sub(r"[^A-Za-z0-9._+-]+", "-", base).lstrip(".+-") or "model"
        count = 1
        while name in found:
            count += 1
            name = f"{base}-{count}"
        found[name] = path
    return found


def _named_target(target: str) -> str:
    return Path(target).stem if target.endswith(".toml") else target


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """Return TOML: what JSON writes of texts, numbers and lists of them is TOML too."""
    return json.dumps(value, ensure_ascii=False)
