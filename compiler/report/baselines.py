"""Bundles of a release before: in a folder, or below a URL, of which only the manifests are read."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from qcompile.compiler.remote.reading import RemoteFile, find_files
from qcompile.compiler.remote.urls import is_url, local_path, redacted
from qcompile.compiler.report.bundles import Entry, checked, labels_of, open_entries
from qcompile.compiler.report.samples import Samples
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import FILE, MAX_BYTES, Manifest

_NOWHERE = Path(os.devnull)


def read_baseline(place: str) -> tuple[Entry, ...]:
    """Return the bundles of a baseline, in the order of their labels.

    Args:
        place: A bundle or a folder of bundles, or a URL of one.

    Raises:
        BundleError: One cannot be read, or there is none.
        MissingPackageError: The package that reads such URLs is not installed.
        RemoteError: The URL cannot be read.
    """
    folder = local_path(place) if is_url(place) else Path(place)
    if folder is None:
        return _remote(place)
    if not folder.is_dir():
        raise BundleError(
            f"the baseline {redacted(place)} is no folder; give one with bundles in it"
        )
    return open_entries([folder])


def _remote(url: str) -> tuple[Entry, ...]:
    files = find_files(url, FILE, MAX_BYTES)
    if not files:
        raise BundleError(f"{redacted(url)} is no bundle, and no list of folders that has any")
    name = PurePosixPath(redacted(url).partition("?")[0]).name
    labels = labels_of([PurePosixPath(name, *map(unquote, file.folders)) for file in files])
    named = sorted(zip(labels, files, strict=True), key=lambda pair: pair[0])
    return tuple(_entry(label, file) for label, file in named)


def _entry(label: str, file: RemoteFile) -> Entry:
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{file.shown} is not text; build the bundle again") from error
    manifest = Manifest.from_json(text, file.shown)
    return checked(lambda: Entry(label, _NOWHERE / label, manifest, Samples()), file.shown)
