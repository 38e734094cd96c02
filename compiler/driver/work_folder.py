"""The folder for what a killed build leaves, held by one process at a time.

The lock is the operating system's, on the folder itself: it ends with the process however that ends, and
leaves no file behind.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.ir.folder_lock import lock_folder


@contextmanager
def held(work: Path, folder: Path) -> Iterator[None]:
    """Make a work folder and hold it.

    Args:
        work: The folder.
        folder: The bundle that it is for.

    Raises:
        OutputError: Another process builds the same bundle.
    """
    lock = _make_and_lock(work)
    if lock is None:
        raise _refusal(folder)
    try:
        refuse_held(folder, but=work)
        yield
    finally:
        os.close(lock)


def remove(work: Path, folder: Path) -> None:
    """Remove a folder that a killed build left.

    Raises:
        OutputError: Another process builds the same bundle with it.
    """
    lock = lock_folder(work)
    if lock is None:
        raise _refusal(folder)
    try:
        shutil.rmtree(work)
    finally:
        os.close(lock)


def siblings(folder: Path) -> list[Path]:
    """Return all work folders for a bundle, sorted."""
    return sorted(p for p in folder.parent.glob(f"{glob.escape(prefix(folder))}*") if p.is_dir())


def prefix(folder: Path) -> str:
    """Return what the names of a bundle's work folders begin with."""
    return f".{folder.name}.work-"


def refuse_held(folder: Path, but: Path | None = None) -> None:
    """Refuse to work on a bundle that another process builds.

    Args:
        folder: The bundle.
        but: A work folder that this process holds itself.

    Raises:
        OutputError: See above.
    """
    if any(is_held(other) for other in siblings(folder) if other != but):
        raise _refusal(folder)


def is_held(work: Path) -> bool:
    """Return whether a process holds a work folder."""
    try:
        lock = lock_folder(work)
    except FileNotFoundError:
        return False
    if lock is None:
        return True
    os.close(lock)
    return False


def _make_and_lock(work: Path) -> int | None:
    """Make a folder and lock it, anew if another process removes it in between; see ``lock_folder``."""
    while True:
        work.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = lock_folder(work)
            if lock is None or os.path.samestat(os.fstat(lock), os.stat(work)):
                return lock
            os.close(lock)


def _refusal(folder: Path) -> OutputError:
    return OutputError(
        f"another process is building {folder}: wait until it is done, or give another -o"
    )
