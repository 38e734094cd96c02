"""The digest of qcompile itself: what another version computed is not what this one would."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

import qcompile


@functools.cache
def own_digest() -> str:
    """Return twelve digits for the sources and device files of this qcompile."""
    root = Path(qcompile.__file__).parent
    hashed = hashlib.sha256()
    for folder, below, files in sorted(os.walk(root, followlinks=True)):
        below[:] = sorted(b for b in below if b != "__pycache__")
        for name in sorted(f for f in files if not f.endswith(".pyc")):
            file = Path(folder, name)
            hashed.update(f"{file.relative_to(root).as_posix()}\n".encode())
            hashed.update(hashlib.sha256(file.read_bytes()).digest())
    return hashed.hexdigest()[:12]
