"""Which files of the project a build reads, seen by Python's audit hooks.

They see what Python opens, lists and imports, and what safetensors opens; not what other libraries open by
themselves: those files are named as ``files`` of the model.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from qcompile.compiler.matrix.digests import LISTING, Digests, is_input

_IMPORT_SYSTEM = "<frozen importlib"
_WRITING = os.O_WRONLY | os.O_RDWR


class Reads:
    """Files below a folder that were read, as they were when they were read first.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._seen: dict[str, object] = {}
        self._outside: tuple[str, ...] = ()

    def add(self, names: Iterable[str]) -> None:
        """Count files among what is read."""
        for name in names:
            if name not in self._seen:
                self._seen[name] = _state(Path(self._root, name))

    def leave_out(self, folders: Iterable[Path]) -> None:
        """Count nothing below these folders: what is kept there was made, and is no input."""
        self._outside += tuple(os.path.abspath(folder) + os.sep for folder in folders)

    def watch(self) -> None:
        """See all that this process reads from here on."""
        sys.addaudithook(self._hook)
        _watch_safetensors(self._note)

    def digests(self) -> tuple[dict[str, str], list[str]]:
        """Return the digests of what was read and is still there, and what changed since it was read."""
        root = Path(self._root)
        found = Digests(root).all(self._seen)
        changed = [name for name in found if _state(root / name) != self._seen[name]]
        return found, sorted(changed)

    def _hook(self, event: str, arguments: Sequence[Any]) -> None:
        if event == "open" and not (arguments[2] or 0) & _WRITING:
            self._note(arguments[0])
        elif event in ("os.listdir", "os.scandir") and self._is_user():
            self._note(arguments[0] or ".", LISTING)

    def _is_user(self) -> bool:
        """Return whether the project's own code lists a folder, and not an import in it, nor the build."""
        frame = sys._getframe(2)
        if frame.f_code.co_filename.startswith(_IMPORT_SYSTEM):
            return False
        caller: FrameType | None = frame
        while caller is not None and not caller.f_code.co_filename.startswith(self._root + os.sep):
            caller = caller.f_back
        return caller is not None

    def _note(self, path: Any, ending: str = "") -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        full = os.path.abspath(os.fsdecode(path))
        if not full.startswith(self._root + os.sep) and full != self._root:
            return
        if full.startswith(self._outside):
            return
        if os.path.basename(os.path.dirname(full)) == "__pycache__":
            full = importlib.util.source_from_cache(full)
        name = os.path.relpath(full, self._root) + ending
        if name not in self._seen and all(map(is_input, Path(full).relative_to(self._root).parts)):
            self._seen[name] = None  # at once: listing a folder is an event too
            self._seen[name] = _state(Path(self._root, name))


def _state(path: Path) -> object:
    """Return what changes when a file does; of a folder, its names."""
    try:
        found = path.stat()
    except OSError:
        return None
    if path.is_dir():
        return Digests(path).of(f".{LISTING}")
    return found.st_mtime_ns, found.st_size, found.st_ino


def _watch_safetensors(note: Any) -> None:
    """Let safetensors, which opens files in Rust, tell what it opens."""
    import safetensors
    import safetensors.numpy
    import safetensors.torch

    original = safetensors.safe_open

    def safe_open(filename: Any, *arguments: Any, **options: Any) -> Any:
        note(filename)
        return original(filename, *arguments, **options)

    modules: list[Any] = [safetensors, safetensors.numpy, safetensors.torch]
    for module in modules:
        module.safe_open = safe_open
