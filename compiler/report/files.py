"""The files of a report: checked before the work, written whole or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from qcompile.compiler.ir.errors import OutputError


def check_files(files: Mapping[str, Path], bundles: Sequence[Path]) -> None:
    """Refuse files that cannot be written or would change a bundle.

    Args:
        files: By the option that names them.
        bundles: Folders that are read.

    Raises:
        OutputError: Says which file and why.
    """
    places = {option: file.resolve() for option, file in files.items()}
    if twice := [place for place, count in Counter(places.values()).items() if count > 1]:
        options = [option for option, place in places.items() if place in twice]
        raise OutputError(f"{' and '.join(options)} name one file; give each its own")
    for option, file in files.items():
        if inside := [b for b in bundles if _is_bundle_of(places[option], b)]:
            raise OutputError(
                f"{option} {file} lies in the bundle {inside[0]}, which it would change"
            )
        _check_place(option, file)


def write(file: Path, text: str) -> None:
    """Write a file in one rename.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    part = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error


def _check_place(option: str, file: Path) -> None:
    """Refuse a file that cannot be made."""
    folder = file.absolute().parent
    if file.is_dir():
        raise OutputError(f"{option} {file} is a folder; name a file")
    if not folder.is_dir():
        raise OutputError(
            f"{option} {file} cannot be written: {file.parent} is no folder; make it first"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {file} cannot be written: {file.parent} is not writable")


def _is_bundle_of(file: Path, bundle: Path) -> bool:
    return file.is_relative_to(bundle.resolve())
