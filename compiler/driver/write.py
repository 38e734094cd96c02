"""Writing a bundle so that nobody ever sees half of one.

The bundle grows in a folder beside its destination, ``.NAME.qc.tmp-PID``, and takes its place in one
rename once it is whole. What a killed build left is removed by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import qcompile.runtime
from qcompile.compiler.ir.errors import OutputError
from qcompile.runtime.manifest import FILE, FileInfo, Manifest, file_sha256

_AT_FDCWD, _EXCHANGE = -100, 2
_EPOCH = (1980, 1, 1, 0, 0, 0)


def check_destination(folder: Path, *, force: bool) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        OutputError: It exists and ``force`` is not given, is no bundle, or is not writable.
    """
    if folder.exists() and not force:
        raise OutputError(f"{folder} exists; give --force to replace it, or another -o")
    if folder.exists() and not (folder / FILE).is_file():
        raise OutputError(f"{folder} exists and is no bundle; it is not replaced: give another -o")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(f"{parent} is not writable; give another -o")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a new folder beside ``folder``; it is removed on the way out unless it was published."""
    parent = folder.absolute().parent
    stage = parent / f".{folder.name}.tmp-{os.getpid()}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent, folder.name)
        stage.mkdir()
    except OSError as error:
        raise _refusal(parent, error) from error
    try:
        yield stage
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG):
            raise _refusal(parent, error) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def publish(stage: Path, folder: Path) -> None:
    """Put a finished folder in its place; an old one there is replaced in the same instant."""
    if folder.exists():
        _exchange(stage, folder)
    else:
        stage.rename(folder)


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and flush everything to disk."""
    (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def file_table(folder: Path) -> dict[str, FileInfo]:
    """Return size and digest of every file, by its path in the folder."""
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {
        f.relative_to(folder).as_posix(): FileInfo(f.stat().st_size, file_sha256(f)) for f in files
    }


def write_runtime(file: Path) -> None:
    """Write ``run.pyz``, a zipapp of the runtime; its bytes depend on the sources alone."""
    root = Path(qcompile.runtime.__file__).resolve().parent
    entries = {"qcompile/__init__.py": b'"""The runtime of qcompile."""\n'}
    for source in sorted(root.rglob("*.py")):
        entries[f"qcompile/runtime/{source.relative_to(root).as_posix()}"] = source.read_bytes()
    entries["__main__.py"] = (
        b"import sys\nfrom qcompile.runtime.__main__ import main\nsys.exit(main())\n"
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, entries[name])
    file.write_bytes(b"#!/usr/bin/env python3\n" + buffer.getvalue())
    file.chmod(0o755)


def _exchange(first: Path, second: Path) -> None:
    """Swap two folders in one step where the system can, else in two renames."""
    libc = ctypes.CDLL(None, use_errno=True)
    swap = getattr(libc, "renameat2", None)
    if swap is not None:
        names = os.fsencode(first), os.fsencode(second)
        if swap(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0:
            return
    old = first.with_name(f"{first.name}-old")
    second.rename(old)
    first.rename(second)
    shutil.rmtree(old, ignore_errors=True)


def _remove_stale(parent: Path, name: str) -> None:
    for left in parent.glob(f".{name}.tmp-*"):
        pid = left.name.rsplit("-", 1)[1]
        if not pid.isdigit() or not _is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _refusal(parent: Path, error: OSError) -> OutputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(
        f"the bundle cannot be written to {parent}: {reason}; nothing was changed there"
    )
