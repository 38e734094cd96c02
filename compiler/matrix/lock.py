"""``qcompile.lock``: what each bundle was made from, and which bundle came of it.

The text is a function of the inputs: keys are sorted, paths are relative, and there is no clock in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import OutputError, ProjectError
from qcompile.compiler.matrix.cells import Cell
from qcompile.compiler.matrix.digests import Digests, device_digest, expand, format_of, tools

FILE = "qcompile.lock"
SCHEMA = 1
_ADVICE = "build without --locked, or delete it, to have it written anew"


@dataclass(frozen=True)
class Entry:
    """What is pinned of a build.

    Args:
        bundle: SHA-256 of its ``manifest.json``, which holds those of its files.
        device: Of the facts about the device.
        files: By path: those that the project file names, and those that the model was seen to read.
        options: As the project file says them.
        tools: Versions.
    """

    bundle: str
    device: str
    files: Mapping[str, str]
    options: Mapping[str, Any]
    tools: Mapping[str, str]


@dataclass(frozen=True)
class Basis:
    """What a build rests on besides its inputs.

    Args:
        device: SHA-256 of the facts about the device.
        tools: Versions.
    """

    device: str
    tools: Mapping[str, str]


def read(root: Path) -> dict[str, Entry]:
    """Read the lock of a project; it is empty if there is none.

    Raises:
        ProjectError: It is no lock, or of a newer schema.
    """
    file = root / FILE
    if not file.is_file():
        return {}
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise ProjectError(
                f"{FILE} has schema {data['schema']!r}, and this qcompile reads {SCHEMA}; {_ADVICE}"
            )
        return {name: _entry(row) for name, row in data["builds"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProjectError(f"{FILE} is damaged ({error}); {_ADVICE}") from error


def _entry(row: Any) -> Entry:
    if set(row) != {f.name for f in fields(Entry)}:
        raise ValueError(f"the keys of a build are {', '.join(row)}")
    if not all(isinstance(row[key], dict) for key in ("files", "options", "tools")):
        raise ValueError("files, options and tools of a build must be objects")
    return Entry(**row)


def write(root: Path, entries: Mapping[str, Entry]) -> None:
    """Write the lock in one rename.

    Raises:
        OutputError: It cannot be written.
    """
    data = {"schema": SCHEMA, "builds": {name: asdict(entry) for name, entry in entries.items()}}
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
    new = root / f".{FILE}.new"  # one name, for whoever holds the project: nothing piles up
    try:
        with new.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        new.replace(root / FILE)
    except OSError as error:
        raise OutputError(f"{FILE} cannot be written: {os.strerror(error.errno or 0)}") from error


def entry(root: Path, cell: Cell, files: Mapping[str, str], bundle: str) -> Entry:
    """Return what is to be pinned of a build that was made just now."""
    found = basis(root, cell.flags)
    return Entry(bundle, found.device, dict(files), dict(cell.flags), found.tools)


def basis(root: Path, flags: Mapping[str, Any]) -> Basis:
    """Return what a build with these options rests on, besides its inputs."""
    device = str(flags["target"])
    return Basis(device_digest(device, root), tools(flags.get("format") or format_of(device, root)))


def drift(root: Path, cell: Cell, pinned: Entry, digests: Digests) -> list[str]:
    """Return what is not as it was when a build was pinned, a few words each."""
    files = digests.all([*expand(root, cell.inputs), *pinned.files])
    now = entry(root, cell, files, pinned.bundle)
    found = [f"{name} {what}" for name, what in _differences(pinned.files, now.files)]
    for before, after in ((pinned.options, now.options), (pinned.tools, now.tools)):
        found += changes(before, after)
    if pinned.device != now.device:
        found.append(f"the facts about {cell.flags['target']} changed")
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return what is not as it was, a few words each, with both values."""
    return [
        f"{name.replace('_', '-')}: {_shown(before, name)} -> {_shown(after, name)}"
        for name, _ in _differences(before, after)
    ]


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in sorted({*before, *after}):
        if name not in after:
            yield name, "is missing"
        elif name not in before:
            yield name, "is new"
        elif before[name] != after[name]:
            yield name, "changed"


def _shown(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "none"
