"""``CacheOptions``: what a user says about the cache, and the cache that it means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from qcompile.compiler.stages.folder import DEFAULT_BYTES

if TYPE_CHECKING:
    from qcompile.compiler.stages.cache import StageCache

_LOCAL = ("file", "local")


@dataclass(frozen=True)
class CacheOptions:
    """What a user says about the cache.

    Args:
        folder: Of the entries; ``None`` for no cache.
        max_bytes: Of all entries.
        remote: URL of entries that several machines share.
        read_only: Whether entries at ``remote`` are only read.
    """

    folder: Path | None = None
    max_bytes: int = DEFAULT_BYTES
    remote: str | None = None
    read_only: bool = False

    def open(self, note: Callable[[str], None]) -> StageCache:
        """Return the cache.

        Args:
            note: Told once each what is wrong with it.

        Raises:
            MissingPackageError: The package that reads the remote's URL is not installed.
            RemoteError: It is no URL of fsspec's.
        """
        from qcompile.compiler.stages.cache import StageCache

        say, remote = _once(note), None
        if self.remote is not None:
            from qcompile.compiler.stages.remote import RemoteEntries

            remote = RemoteEntries.at(self.remote, writable=not self.read_only, note=say)
        return StageCache(self.folder, self.max_bytes, remote, say)

    def folders(self) -> list[Path]:
        """Return the folders of this machine that hold entries."""
        found = [] if self.folder is None else [self.folder]
        scheme, mark, path = (self.remote or "").rpartition("://")
        return [*found, Path(unquote(path))] if mark and scheme in _LOCAL else found

    def as_json(self) -> dict[str, Any]:
        """Return plain data, for another process."""
        folder = None if self.folder is None else str(self.folder)
        return asdict(self) | {"folder": folder}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CacheOptions:
        """Return what ``as_json`` gave."""
        folder = data["folder"]
        return cls(**{**data, "folder": None if folder is None else Path(folder)})


WITHOUT_CACHE = CacheOptions()


def _once(note: Callable[[str], None]) -> Callable[[str], None]:
    said: set[str] = set()

    def say(text: str) -> None:
        if text not in said:
            said.add(text)
            note(text)

    return say
