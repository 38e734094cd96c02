"""What a build depends on, as SHA-256: files, folders, device facts, and the tools with their versions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterable
from pathlib import Path

import qcompile
from qcompile.compiler.matrix.known_digests import file_digest
from qcompile.compiler.stages.sources import own_digest
from qcompile.targets.device import load_device
from qcompile.targets.formats import emitter_names

LISTING = "/"
"""What the name of a folder ends with if the names in it count, and nothing more."""
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([A-Za-z0-9._-]+)['\"]")
_BUNDLE = (".qc", ".qc.rejected")


class Digests:
    """Digests of files below a folder, each read once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, str | None] = {}

    def of(self, name: str) -> str | None:
        """Return the digest of a file or of a folder's listing; ``None`` if it is not there."""
        if name not in self._known:
            self._known[name] = self._read(name)
        return self._known[name]

    def all(self, names: Iterable[str]) -> dict[str, str]:
        """Return the digests of those that are there."""
        found = {name: self.of(name) for name in sorted(set(names))}
        return {name: digest for name, digest in found.items() if digest is not None}

    def _read(self, name: str) -> str | None:
        path = self._root / name
        try:
            if name.endswith(LISTING):
                return _sha256(json.dumps(sorted(filter(is_input, os.listdir(path)))))
            return file_digest(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None


def is_input(name: str) -> bool:
    """Return whether a file or folder of this name may be an input: not hidden, no bundle, no bytecode."""
    return not name.startswith(".") and not name.endswith(_BUNDLE) and name not in _NO_INPUTS


_NO_INPUTS = ("__pycache__", "site-packages", "qcompile.lock")


def expand(root: Path, names: Iterable[str]) -> list[str]:
    """Return the files that are meant: of folders, all in them that are no hidden ones; sorted."""
    found = set()
    for name in names:
        path = root / name
        if not path.is_dir():
            found.add(os.path.normpath(name))
            continue
        for folder, below, files in os.walk(path):
            below[:] = filter(is_input, below)
            inside = os.path.relpath(folder, root)
            found |= {os.path.normpath(f"{inside}/{f}") for f in files if is_input(f)}
    return sorted(found)


@functools.cache
def device_digest(device: str, root: Path) -> str:
    """Return the digest of the facts that a build for a device rests on.

    Of a bare format they are those of this machine; what else it rests on is part of qcompile.
    """
    name = "host" if device in emitter_names() else device
    facts = load_device(str(root / name) if name.endswith(".toml") else name)
    return _sha256(json.dumps(dataclasses.asdict(facts), sort_keys=True))


def format_of(device: str, root: Path) -> str:
    """Return the format that a build for a device has if nothing else is said."""
    if device in emitter_names():
        return device
    return load_device(str(root / device) if device.endswith(".toml") else device).format


@functools.cache
def tools(format: str) -> dict[str, str]:
    """Return the versions of Python, of qcompile and of the packages that a format needs."""
    found = {"python": platform.python_version(), "qcompile": qcompile.__version__}
    found["qcompile sources"] = own_digest()
    for package in _packages(format):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _packages(format: str) -> list[str]:
    """Return the packages that qcompile needs, and those of the extra of a format."""
    found = []
    for line in importlib.metadata.requires("qcompile") or ():
        name, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        if name and (extra is None or extra[1] == format):
            found.append(name[1])
    return sorted(found)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
