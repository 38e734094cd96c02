"""SHA-256 of large files, read again only if they changed: a checkpoint takes minutes to read.

What was read is kept in the user's cache with the file's size, node and times. A file's ctime cannot be set
back, so one that was written again, with whatever time of change, is read again. Times have steps: a file
that changed a moment ago may change once more within one, and is not kept.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from qcompile.runtime.manifest import file_sha256
from qcompile.targets.cache import cache_root

LARGE = 8 << 20
"""Smaller files are read each time."""
_SETTLED = 2.0
"""Seconds without a change after which times tell of every further one."""
_FILE = "digests.json"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    before = _facts(path)
    if before[0] < LARGE:
        return file_sha256(path)
    name = str(path.absolute())
    known = _read().get(name)
    if isinstance(known, list) and known[1:] == before:
        return str(known[0])
    digest = file_sha256(path)
    if before == _facts(path) and time.time() - before[-1] / 1e9 > _SETTLED:
        _keep(name, [digest, *before])
    return digest


def _facts(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _read() -> dict[str, Any]:
    try:
        found = json.loads((cache_root() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(name: str, row: list[Any]) -> None:
    """Add a file; those that are gone are left out. What cannot be written is read again the next time."""
    rows = {n: r for n, r in _read().items() if os.path.exists(n)} | {name: row}
    file = cache_root() / _FILE
    part = file.with_name(f".{_FILE}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(rows, indent=1, sort_keys=True), encoding="utf-8")
        part.replace(file)
