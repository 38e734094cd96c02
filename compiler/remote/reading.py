"""Small files below a URL: found by name, read whole. Nothing here writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from qcompile.compiler.ir.errors import RemoteError
from qcompile.compiler.remote.urls import filesystem, reason, redacted

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_DEPTH = 6
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class RemoteFile:
    """A file below a URL.

    Args:
        folders: From the URL's folder to the file's.
        shown: Its URL, as it may be printed.
        content: All of it.
    """

    folders: tuple[str, ...]
    shown: str
    content: bytes


def find_files(url: str, name: str, most: int) -> list[RemoteFile]:
    """Read the file of a name in a folder, or those in the folders below; not below a folder that has one.

    Args:
        url: The folder.
        name: Of the files.
        most: Bytes that a file may have.

    Raises:
        MissingPackageError: The package that reads such URLs is not installed.
        RemoteError: It cannot be read, or a file is larger.
    """
    fs, path = filesystem(url)
    return sorted(_Reader(fs, url, name, most).below(path, ()), key=lambda file: file.folders)


@dataclass(frozen=True)
class _Reader:
    fs: AbstractFileSystem
    url: str
    name: str
    most: int

    def below(self, path: str, folders: tuple[str, ...]) -> Iterator[RemoteFile]:
        """Give the files below a path; the folder itself first, since not every server lists its folders."""
        shown = "/".join((redacted(self.url).partition("?")[0].rstrip("/"), *folders))
        content = self._content(_joined(path, self.name), f"{shown}/{self.name}")
        if content is not None:
            yield RemoteFile(folders, f"{shown}/{self.name}", content)
        elif len(folders) < _DEPTH:
            for child in self._children(path, shown):
                yield from self.below(_joined(path, child), (*folders, child))

    def _content(self, path: str, shown: str) -> bytes | None:
        def read() -> bytes | None:
            try:
                with self.fs.open(path, "rb") as stream:
                    return bytes(stream.read(self.most + 1))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

        content = _guarded(read, shown)
        if content is not None and len(content) > self.most:
            raise RemoteError(
                f"{shown} is larger than {self.most >> 20} MiB, which it never should be"
            )
        return content

    def _children(self, path: str, shown: str) -> list[str]:
        """Return the folders in a folder; hidden ones are those of builds that go on."""
        rows = _guarded(lambda: self.fs.ls(path, detail=True), shown)
        start = f"{path.strip('/')}/".lstrip("/")
        places = (row["name"].strip("/") for row in rows if row["type"] == "directory")
        found = {place.removeprefix(start) for place in places if place.startswith(start)}
        return sorted(n for n in found if n and n[0] != "." and not set(n) & set("/?#"))


def _guarded(step: Callable[[], _Found], shown: str) -> _Found:
    try:
        return step()
    except Exception as error:  # each file system has exceptions of its own
        advice = "check the address, the network and the credentials"
        raise RemoteError(f"{shown} cannot be read: {reason(error)}; {advice}") from None


def _joined(path: str, name: str) -> str:
    """Return a path below another one; a query, which only HTTP has, stays at the end."""
    if not path.startswith(("http://", "https://")):
        return f"{path.rstrip('/')}/{name}" if path else name
    folder, mark, query = path.partition("?")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"
