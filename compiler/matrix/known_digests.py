"""SHA-256 of large files, read again only if they changed: a checkpoint takes minutes to read.

What was read is kept in the user's cache with the file's size, node and times. A file's ctime cannot be set
back, so one that was written again, with whatever time of change, is read again. Times have steps: a file
that changed a moment ago may change once more within one, and is not kept.
"""

from __future__ import annotations

import time
from pathlib import Path

from qcompile.compiler.matrix.remembered import recall, remember
from qcompile.runtime.manifest import file_sha256

LARGE = 8 << 20
"""Smaller files are read each time."""
_SETTLED = 2.0
"""Seconds without a change after which times tell of every further one."""
_KIND = "digests"


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        OSError: It cannot be read.
    """
    before = _facts(path)
    if before[0] < LARGE:
        return file_sha256(path)
    name = str(path.absolute())
    known = recall(_KIND).get(name)
    if isinstance(known, list) and known[1:] == before:
        return str(known[0])
    digest = file_sha256(path)
    if before == _facts(path) and time.time() - before[-1] / 1e9 > _SETTLED:
        remember(_KIND, {name: [digest, *before]})
    return digest


def _facts(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]
