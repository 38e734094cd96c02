"""What takes long to make and is the same for every bundle, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from qcompile.compiler.ir.errors import OutputError


def cache_root() -> Path:
    """Return ``$XDG_CACHE_HOME/qcompile``, or where the XDG specification puts it by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompile"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, made at its first use; a failed attempt leaves nothing.

    Args:
        name: Of the folder; it changes with all that the content depends on.
        make: Fills an empty folder.

    Raises:
        OutputError: The cache cannot be written.
    """
    root = cache_root()
    final = root / name
    if final.is_dir():
        return final
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".making-") as temporary:
            made = Path(temporary) / "made"
            made.mkdir()
            make(made)
            _move(made, final)
    except OSError as error:
        raise OutputError(f"the cache {root} cannot be written: {error.strerror}") from error
    return final


def digest(parts: Iterable[str | bytes]) -> str:
    """Return twelve digits that stand for all parts and their order."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "little") + data)
    return hashed.hexdigest()[:12]


def _move(made: Path, final: Path) -> None:
    """Rename, unless another process was faster."""
    try:
        made.rename(final)
    except OSError:
        if not final.is_dir():
            raise
