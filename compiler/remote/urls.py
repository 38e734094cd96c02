"""URLs of fsspec: what is one, what may be printed of one, and the file system that it names.

A URL may hold secrets: a password or a token before the host, a signature in the query. Whatever is printed,
logged or written says ``redacted(url)``, and no text of an exception of a file system: those quote URLs.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.compiler.ir.errors import MissingPackageError, RemoteError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

HIDDEN = "***"
_CHAIN = "::"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)(?:://|(?=::)|$)")
_COMMON = ("file", "gs", "http", "https", "memory", "s3")
_IN_THE_EXTRA = {"http": "aiohttp", "https": "aiohttp"}


def is_url(text: str) -> bool:
    """Return whether a text is a URL, or a chain of them, and no path."""
    return "://" in text or _CHAIN in text


def redacted(url: str) -> str:
    """Return a URL as it may be printed: without what stands before ``@``, in the query or in the fragment.

    A password may have any sign in it, so that rather too much is hidden than too little. A secret in the
    path cannot be told from a folder.
    """
    scheme, mark, rest = url.partition("://") if "://" in url else ("", "", url)
    before, at, after = rest.rpartition("@")
    if set(before) & set("?#"):
        return f"{scheme}{mark}{HIDDEN}"
    shown = f"{HIDDEN}@{after}" if at else rest
    for sign in "?#":
        kept, cut, _ = shown.partition(sign)
        shown = f"{kept}{cut}{HIDDEN}" if cut else kept
    return f"{scheme}{mark}{shown}"


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Return what reads a URL, and the path in it.

    Raises:
        MissingPackageError: The package that reads such URLs is not installed.
        RemoteError: fsspec knows no such URLs, or they say too little.
    """
    import fsspec

    schemes = [_scheme(part, url) for part in url.split(_CHAIN)]
    for scheme in schemes:
        _check_installed(scheme)
    try:
        fs, path = fsspec.url_to_fs(url)
    except Exception as error:
        raise RemoteError(f"{redacted(url)} cannot be used: {reason(error)}") from None
    return fs, str(path)


def local_path(url: str) -> Path | None:
    """Return the path of a ``file`` URL; ``None`` for other URLs.

    Raises:
        MissingPackageError: As of ``filesystem``.
        RemoteError: As of ``filesystem``.
    """
    from fsspec.implementations.local import LocalFileSystem

    fs, path = filesystem(url)
    return Path(path) if isinstance(fs, LocalFileSystem) else None


def reason(error: Exception) -> str:
    """Return why a file system failed, without its text, which may quote the URL."""
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"the server answered {status}"
    known = (
        (FileNotFoundError, "there is nothing"),
        (PermissionError, "access is denied"),
        (TimeoutError, "there was no answer in time"),
        (OSError, "it cannot be reached"),
    )
    return next((said for kind, said in known if isinstance(error, kind)), type(error).__name__)


def _scheme(part: str, url: str) -> str:
    from fsspec.registry import known_implementations, registry

    match = _SCHEME.match(part)
    scheme = match[1].lower() if match else ""
    known = {*known_implementations, *registry}
    if scheme in known:
        return scheme
    near = difflib.get_close_matches(scheme, sorted(known), n=1) if scheme else []
    advice = (
        f"did you mean {near[0]}?"
        if near
        else f"give one of {', '.join(_COMMON)}, or another of fsspec's"
    )
    named = f"the scheme {scheme!r}" if scheme else "no scheme"
    raise RemoteError(f"{redacted(url)} has {named}, which fsspec does not know; {advice}")


def _check_installed(scheme: str) -> None:
    """Refuse URLs whose package is not there; fsspec names the package."""
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        if scheme in _IN_THE_EXTRA:
            raise MissingPackageError(_IN_THE_EXTRA[scheme], "remote") from None
        said = str(error).rstrip(".")
        raise RemoteError(
            f"URLs of {scheme} need a package that is not installed: {said}"
        ) from None
