"""The last step to a library: linking, and an archive of what is linked for those who link themselves."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from qcompile.targets.tvm import libraries

ARCHIVE = "objects.tar"


def link(
    output: str, files: Sequence[str], options: Sequence[str], cc: str, *, is_archived: bool
) -> None:
    """Make a shared library; a hook of TVM's ``Module.export_library``.

    Args:
        output: The library.
        files: Objects, and assembly.
        options: Of the compiler.
        cc: The compiler.
        is_archived: Write ``objects.tar`` beside the library.

    Raises:
        TargetError: The compiler fails.
    """
    objects = [_object(Path(file), cc) for file in files]
    if is_archived:
        archive(objects, Path(output).with_name(ARCHIVE))
    libraries.run_tool([cc, "-shared", "-fPIC", "-o", output, *objects, *options])


def archive(files: Sequence[Path], to: Path) -> None:
    """Write files into a tar archive: names and contents, nothing of this machine or moment."""
    with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            entry = tarfile.TarInfo(file.name)
            data = file.read_bytes()
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def _object(file: Path, cc: str) -> Path:
    if file.suffix != ".S":
        return file
    made = file.with_suffix(".o")
    libraries.run_tool([cc, "-c", file, "-o", made])
    return made
