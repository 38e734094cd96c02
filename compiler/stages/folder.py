"""The folder of a cache: what is in it, and what goes when it is too large."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEFAULT_BYTES = 10 << 30
PART = ".part-"
"""What the name of a file begins with that is not whole yet."""
_OLD_PART = 3600.0
"""Seconds after which what a killed process left is removed."""


@dataclass(frozen=True)
class Stored:
    """An entry as a file.

    Args:
        file: ``STAGE/KEY`` in the cache's folder.
        bytes: Its size.
        used: When it was read last, or written, as the system counts seconds.
    """

    file: Path
    bytes: int
    used: float

    @property
    def stage(self) -> str:
        """What made it."""
        return self.file.parent.name


def entries(folder: Path) -> list[Stored]:
    """Return the entries of a cache, those not read for longest first."""
    found = [_stored(file) for file in folder.glob("*/*") if not file.name.startswith(PART)]
    return sorted((f for f in found if f), key=lambda f: (f.used, f.stage, f.file.name))


def evict(folder: Path, max_bytes: int) -> list[Stored]:
    """Remove entries, those not read for longest first, until the rest is small enough; return them."""
    for part in _old_parts(folder):
        part.unlink(missing_ok=True)
    found = entries(folder)
    total, gone = sum(f.bytes for f in found), []
    for stored in found:
        if total <= max_bytes:
            break
        stored.file.unlink(missing_ok=True)
        total -= stored.bytes
        gone.append(stored)
    return gone


def _stored(file: Path) -> Stored | None:
    try:
        found = file.stat()
    except FileNotFoundError:  # another process removed it
        return None
    return Stored(file, found.st_size, found.st_mtime)


def _old_parts(folder: Path) -> Iterator[Path]:
    for part in folder.glob(f"*/{PART}*"):
        with suppress(FileNotFoundError):
            if time.time() - part.stat().st_mtime > _OLD_PART:
                yield part
