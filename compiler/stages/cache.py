"""A folder of entries, each whole or not there, that several processes use at once.

An entry is ``STAGE/KEY``. It is written beside and renamed, so that no reader sees a part of it; it is
checked against its own SHA-256 when it is read, so that one that was damaged is made again. Reading an
entry sets its time; when the folder is larger than it may be, those that were not read for longest go
first. There are no locks: two processes that make the same entry write the same bytes, and one that is
removed while it is read stays readable until then.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from qcompile.compiler.stages.entry import Entry
from qcompile.compiler.stages.folder import DEFAULT_BYTES, PART, entries, evict

_LOOKS = 64
"""Looks at all entries while a cache is filled once: other processes may fill it beside."""


class Remote(Protocol):
    """Entries elsewhere."""

    def get(self, name: str) -> bytes | None:
        """Return an entry's bytes; ``None`` if it is not there or cannot be had."""

    def put(self, name: str, data: bytes) -> None:
        """Keep an entry's bytes, if it may be written to."""


@dataclass(eq=False)
class StageCache:
    """What stages found.

    Args:
        folder: Of the entries; ``None`` for no cache.
        max_bytes: Of all entries.
        remote: Asked for what is not in the folder, and told what is made.
        note: Told what is wrong with the cache; a build goes on without it.
    """

    folder: Path | None
    max_bytes: int = DEFAULT_BYTES
    remote: Remote | None = None
    note: Callable[[str], None] = lambda text: None
    hits: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    _free: int = field(default=-1, repr=False)
    """Bytes that may be written before it looks for what is to go."""

    def __bool__(self) -> bool:
        """Whether there is one, so that keys are of use."""
        return self.folder is not None

    def get(self, stage: str, key: str) -> Entry | None:
        """Return what a stage found for a key; ``None`` if it is to be made."""
        if self.folder is None:
            return None
        name = f"{stage}/{key}"
        found = self._local(name) or self._fetched(name)
        (self.misses if found is None else self.hits).append(stage)
        return found

    def put(self, stage: str, key: str, entry: Entry) -> None:
        """Keep what a stage found; a cache that cannot be written is noted."""
        if self.folder is None:
            return
        data = entry.pack()
        self._write(f"{stage}/{key}", data)
        if self.remote is not None:
            self.remote.put(f"{stage}/{key}", data)

    def _local(self, name: str) -> Entry | None:
        assert self.folder is not None
        file = self.folder / name
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.note(
                f"the cache {self.folder} cannot be read ({error.strerror}): built without it"
            )
            return None
        if (found := Entry.unpack(data)) is None:
            self.note(f"the cache's entry {name} is damaged: it is made again")
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):  # of a cache that is read only
            os.utime(file)
        return found

    def _fetched(self, name: str) -> Entry | None:
        data = None if self.remote is None else self.remote.get(name)
        if data is None:
            return None
        if (found := Entry.unpack(data)) is None:
            self.note(f"the remote cache's entry {name} is damaged: it is made again")
            return None
        self._write(name, data)
        return found

    def _write(self, name: str, data: bytes) -> None:
        assert self.folder is not None
        file = self.folder / name
        part = file.with_name(f"{PART}{os.getpid()}-{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                part.write_bytes(data)
                part.replace(file)
            finally:
                part.unlink(missing_ok=True)
            self._make_room(len(data))
        except OSError as error:
            self.note(
                f"the cache {self.folder} cannot be written ({error.strerror}): nothing is kept"
            )

    def _make_room(self, written: int) -> None:
        """Remove what is too much, and a little more: to look through a large cache takes long."""
        assert self.folder is not None
        self._free -= written
        if self._free < 0:
            step = self.max_bytes // _LOOKS
            total = sum(stored.bytes for stored in entries(self.folder))
            gone = evict(self.folder, self.max_bytes - step * (total > self.max_bytes))
            total -= sum(stored.bytes for stored in gone)
            self._free = min(self.max_bytes - total, step)


NO_CACHE = StageCache(None)
