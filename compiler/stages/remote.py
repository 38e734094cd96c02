"""Entries at a URL of fsspec (files, S3, GCS, ...), shared by machines; those who may not write only read.

What is read is checked by its own SHA-256 like any other entry, so that a torn upload is no entry. A remote
cache that fails once is left alone for the rest of the build: a network that times out would do so each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from qcompile.compiler.remote.urls import filesystem, reason, redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_Result = TypeVar("_Result")


@dataclass
class RemoteEntries:
    """A folder of entries elsewhere.

    Args:
        fs: The file system.
        folder: Its path in it.
        shown: Its URL, as it may be printed.
        writable: Whether entries are added.
        note: Told that it fails.
        failed: Whether it has.
        made: Folders that are there.
    """

    fs: AbstractFileSystem
    folder: str
    shown: str
    writable: bool
    note: Callable[[str], None]
    failed: bool = False
    made: set[str] = field(default_factory=set)

    @classmethod
    def at(cls, url: str, *, writable: bool, note: Callable[[str], None]) -> RemoteEntries:
        """Return the entries at a URL.

        Raises:
            MissingPackageError: The package that reads such URLs is not installed.
            RemoteError: fsspec knows no such URLs, or they say too little.
        """
        fs, path = filesystem(url)
        return cls(fs, path.rstrip("/"), redacted(url), writable, note)

    def get(self, name: str) -> bytes | None:
        """Return an entry's bytes; ``None`` if it is not there or cannot be had."""

        def read() -> bytes | None:
            try:
                return bytes(self.fs.cat_file(f"{self.folder}/{name}"))
            except FileNotFoundError:
                return None

        return self._guarded(read, "read")

    def put(self, name: str, data: bytes) -> None:
        """Add an entry, whole or not at all, unless entries are only read."""
        if self.writable:
            self._guarded(lambda: self._write(f"{self.folder}/{name}", data), "written")

    def _write(self, path: str, data: bytes) -> None:
        """Write beside and rename; S3 and its like show nothing before it is whole, and copy to rename."""
        part = f"{path}.part-{os.getpid()}"
        self._make_folder(path.rpartition("/")[0])
        try:
            self.fs.pipe_file(part, data)
            self.fs.mv(part, path)
        except Exception:
            with suppress(Exception):
                self.fs.rm_file(part)
            raise

    def _make_folder(self, stage: str) -> None:
        """Make the folder and that of a stage, but nothing above: a bucket with this name may be nobody's."""
        for folder in sorted({self.folder, stage} - self.made):
            if "/" in folder.strip("/"):
                with suppress(FileExistsError):
                    self.fs.mkdir(folder, create_parents=False)
            self.made.add(folder)

    def _guarded(self, work: Callable[[], _Result], verb: str) -> _Result | None:
        if self.failed:
            return None
        try:
            return work()
        except Exception as error:  # each file system has exceptions of its own
            self.failed = True
            self.note(
                f"the remote cache {self.shown} cannot be {verb} ({reason(error)}): built without it"
            )
            return None
