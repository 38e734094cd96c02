"""Writing a bundle so that nobody ever sees half of one.

The bundle grows in a folder beside its destination, ``.NAME.qc.tmp-PID``, and takes its place in
one rename once it is whole. What a killed build left is removed by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import qcompile.runtime
from qcompile.compiler.ir.errors import OutputError
from qcompile.runtime.manifest import FILE, FileInfo, Manifest, file_sha256

_LINUX_AT_FDCWD, _LINUX_EXCHANGE, _MACOS_SWAP = -100, 2, 2
_OLD = "-old"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAIN = b"""import sys
try:
    from qcompile.runtime.__main__ import main
except ModuleNotFoundError as error:
    print(f"error: this needs the package {error.name!r}; run: pip install numpy", file=sys.stderr)
    sys.exit(2)
sys.exit(main())
"""


def check_destination(folder: Path, *, force: bool) -> None:
    """Refuse a destination that cannot be written, before any work.

    Raises:
        OutputError: It exists and ``force`` is not given, is no bundle, or is not writable.
    """
    if folder.is_symlink():
        raise OutputError(f"{folder} is a link; give the folder that it points to as -o")
    if folder.exists() and not force:
        raise OutputError(f"{folder} exists; give --force to replace it, or another -o")
    if folder.exists() and not (folder / FILE).is_file():
        raise OutputError(f"{folder} exists and is no bundle; it is not replaced: give another -o")
    check_folder(folder.absolute().parent, "-o")


def check_file(file: Path, *, force: bool) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        OutputError: It exists and ``force`` is not given, is a folder, or its folder is not writable.
    """
    if file.is_dir():
        raise OutputError(f"{file} is a folder; give a file as -o")
    if file.exists() and not force:
        raise OutputError(f"{file} exists; give --force to replace it, or another -o")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file.parent} is no folder; make it, or give another -o")
    check_folder(file.absolute().parent, "-o")


def check_folder(folder: Path, option: str) -> None:
    """Refuse a folder in which nothing can be written or that cannot be made.

    Args:
        folder: It need not exist yet.
        option: What the user may change.

    Raises:
        OutputError: It or the folder that it would be made in is a file, or not writable.
    """
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(
            f"{folder} is a file, so no folder can be made in it; give another {option}"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder} is not writable; give another {option}")


def empty(stage: Path) -> None:
    """Remove what lies in a folder."""
    for path in stage.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Give a new folder beside ``folder``; it is removed on the way out unless it was published.

    Raises:
        OutputError: The disk is full, or the place cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    parent = folder.parent
    stage = parent / f".{folder.name}.tmp-{os.getpid()}"
    made = [p for p in (parent, *parent.parents) if not p.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        stage.mkdir()
    except OSError as error:
        _remove_empty(made)
        raise _refusal(parent, error) from error
    try:
        yield stage
    except OSError as error:
        if error.errno in _FULL:
            raise _refusal(parent, error) from error
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(made)


def publish(stage: Path, folder: Path, *, force: bool) -> None:
    """Put a finished folder in its place.

    Args:
        stage: The finished folder.
        folder: Its place.
        force: Replace a folder there in the same instant.

    Raises:
        OutputError: There is one, which another process made meanwhile, and ``force`` is not given.
    """
    place = Path(os.path.abspath(folder))
    if force and place.exists():
        _exchange(stage, place)
        return
    try:
        stage.rename(place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        why = "was made by another process meanwhile"
        raise OutputError(f"{folder} {why}; give --force to replace it, or another -o") from error


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and flush everything to disk."""
    write_manifest(folder, manifest)
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest."""
    (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")


def file_table(folder: Path, known: Mapping[str, FileInfo] | None = None) -> dict[str, FileInfo]:
    """Return size and digest of every file, by its path in the folder; those known are not read."""
    known = known or {}
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    names = {f.relative_to(folder).as_posix(): f for f in files}
    return {
        n: known[n] if n in known else FileInfo(f.stat().st_size, file_sha256(f))
        for n, f in names.items()
    }


def write_runtime(file: Path) -> None:
    """Write ``run.pyz``, a zipapp of the runtime; its bytes depend on the sources alone."""
    root = Path(qcompile.runtime.__file__).resolve().parent
    entries = {"qcompile/__init__.py": b'"""The runtime of qcompile."""\n'}
    for source in sorted(root.rglob("*.py")):
        entries[f"qcompile/runtime/{source.relative_to(root).as_posix()}"] = source.read_bytes()
    entries["__main__.py"] = _MAIN
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
    if _swap(os.fsencode(first), os.fsencode(second)):
        return
    old = first.with_name(first.name + _OLD)
    second.rename(old)
    first.rename(second)
    shutil.rmtree(old, ignore_errors=True)


def _swap(first: bytes, second: bytes) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin":
        return bool(libc.renamex_np(first, second, _MACOS_SWAP) == 0)
    call = getattr(libc, "renameat2", None)
    if call is None:
        return False
    return bool(call(_LINUX_AT_FDCWD, first, _LINUX_AT_FDCWD, second, _LINUX_EXCHANGE) == 0)


def _remove_stale(folder: Path) -> None:
    """Remove what killed builds left; a bundle that one of them had moved aside goes back."""
    for left in sorted(folder.parent.iterdir()):
        if not left.name.startswith(f".{folder.name}.tmp-"):
            continue
        pid = left.name.removesuffix(_OLD).rpartition("-")[2]
        if pid.isdigit() and _is_alive(int(pid)):
            continue
        if left.name.endswith(_OLD) and not folder.exists():
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:  # the innermost first
        with suppress(OSError):
            folder.rmdir()


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
