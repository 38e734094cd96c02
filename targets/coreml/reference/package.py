"""A saved ``.mlpackage``: its manifest, its model description, its program and its blob files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from qcompile.targets.coreml.reference.blob import BlobFile
from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.program import Program, Stored
from qcompile.targets.coreml.reference.proto import read_program
from qcompile.targets.coreml.tools import load_coremltools

MAX_MODEL_BYTES = 256 << 20
"""Of ``model.mlmodel``, which holds no weights; the largest programs take a tenth of it."""
MAX_MANIFEST_BYTES = 1 << 20


@dataclass(frozen=True)
class Package:
    """A package that was read.

    Args:
        folder: The ``.mlpackage``.
        program: Its ML Program.
        description: The ``ModelDescription`` message: features, metadata.
        blobs: Blob files by the name that the program gives them.
        specification: Version of the format: 6 is iOS 15, 9 is iOS 18.
    """

    folder: Path
    program: Program
    description: Any
    blobs: Mapping[str, BlobFile]
    specification: int

    def load(self, stored: Stored) -> Tensor:
        """Return a stored constant.

        Raises:
            PackageError: The blob file does not hold it.
        """
        shape = [s or 0 for s in stored.type.shape]
        return self.blobs[stored.file].read(stored.offset, stored.type.element, shape)


def read_package(folder: Path) -> Package:
    """Read a package; weights stay on disk until they are used.

    Raises:
        PackageError: It is damaged, cut off, or holds no ML Program.
        MissingPackageError: coremltools, which has the format's protobuf, is not installed.
    """
    load_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    file = _root_model(folder)
    model = Model_pb2.Model()
    try:
        model.ParseFromString(_bytes(file, MAX_MODEL_BYTES))
    except DecodeError as error:
        raise PackageError(f"{file} is damaged or cut off: it is no Core ML model") from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise PackageError(
            f"{folder} holds {'no model' if kind is None else f'a {kind}'}, not an ML Program"
        )
    program = read_program(model.mlProgram)
    names = sorted(_blob_names(program))
    blobs = {name: BlobFile(_weights(folder, file.parent, name)) for name in names}
    return Package(folder, program, model.description, blobs, model.specificationVersion)


def _root_model(folder: Path) -> Path:
    manifest = folder / "Manifest.json"
    if not folder.is_dir() or not manifest.is_file():
        raise PackageError(f"{folder} is no .mlpackage: it has no Manifest.json")
    try:
        data = json.loads(_bytes(manifest, MAX_MANIFEST_BYTES))
        path = data["itemInfoEntries"][data["rootModelIdentifier"]]["path"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackageError(f"{manifest} names no root model: the package is damaged") from error
    if not isinstance(path, str):
        raise PackageError(f"{manifest} names no file as its root model: the package is damaged")
    return _file(folder, folder / "Data", path)


def _weights(folder: Path, beside: Path, name: str) -> Path:
    prefix = "@model_path/"
    if not name.startswith(prefix):
        raise PackageError(
            f"the program names the weight file {name!r}, which is not in its package"
        )
    return _file(folder, beside, name.removeprefix(prefix))


def _file(folder: Path, beside: Path, name: str) -> Path:
    """Return a file of the package by its path from ``beside``."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise PackageError(f"the package {folder} points outside of itself: {name!r}")
    try:
        file = (beside / path).resolve()
        exists, inside = file.is_file(), file.is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a circle of links
        raise PackageError(f"the package {folder} names a file that cannot be: {name!r}") from error
    if not inside:
        raise PackageError(
            f"{name!r} is a link that leaves the package {folder}; "
            "copy the package with its files in place of links: cp -RL"
        )
    if not exists:
        raise PackageError(f"the package {folder} lacks the file {name!r}")
    return beside / path


def _bytes(file: Path, limit: int) -> bytes:
    try:
        if file.stat().st_size > limit:
            raise PackageError(f"{file} is larger than {limit >> 20} MiB")
        return file.read_bytes()
    except OSError as error:
        raise PackageError(f"{file} cannot be read: {error.strerror}") from error


def _blob_names(program: Program) -> set[str]:
    found: set[str] = set()
    pending = [f.block for f in program.functions.values()]
    while pending:
        for operation in pending.pop().operations:
            pending += operation.blocks
            for value in operation.inputs.values():
                values = value if isinstance(value, list) else [value]
                found |= {v.file for v in values if isinstance(v, Stored)}
    return found
