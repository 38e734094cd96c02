"""``manifest.json``: what a bundle holds. Written by the compiler, read here without torch.

Every size is checked before it is used, and no path may leave the bundle: a manifest may come from
anywhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from qcompile.runtime.errors import BundleError

SCHEMA = 3
FILE = "manifest.json"
MAX_BYTES = 64 << 20
_SINCE = {"interface": 2, "notes": 2, "foldings": 3, "plan": 3}
"""The first schema that has a field."""
DTYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)


@dataclass(frozen=True)
class TensorInfo:
    """An input or output.

    Args:
        name: Its name in the artifact.
        dtype: numpy's name, ``float32``.
        shape: Sizes; a string names a free axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class FileInfo:
    """A file of the bundle.

    Args:
        bytes: Its size.
        sha256: Hexadecimal digest of its content.
    """

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``; the fields that only people read are plain data.

    Args:
        name: Of the model.
        target: As the user named it.
        format: The emitter's name, ``onnx``.
        precision: ``int8``, ``fp16``, ...
        artifact: File that the engine loads.
        engine: ``name``, ``minimum`` version, ``options`` of the session.
        inputs: In order.
        outputs: In order.
        files: All files but this one, by path in the bundle.
        tools: Versions of what made it.
        model: ``source``, ``sha256``, licence fields.
        calibration: ``source``, ``samples``, ``sha256``; empty without calibration.
        options: The build's options, enough to make it again.
        passes: ``name`` and ``rewrites`` of each, in order.
        layers: The layer table.
        activations: Formats of activations.
        floats: What stays float in the engine, and why.
        parity: The three errors.
        quality: Metrics before and after.
        sizes: Bytes before and after, bits per weight.
        gates: Each gate, its limit, what was measured.
        interface: Images, labels, shapes and metadata, as the model file says (schema 2).
        notes: What is not as one might expect, a sentence each (schema 2).
        foldings: Factors that were moved into the columns of layers: what took them up, which layers,
            and the error with them by that without (schema 3).
        plan: The format of each tensor under a budget and the front that it was chosen from, or the layers
            of integer arithmetic that stay float, why, and what was predicted and measured (schema 3).
    """

    name: str
    target: str
    format: str
    precision: str
    artifact: str
    engine: Mapping[str, Any]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    files: Mapping[str, FileInfo]
    tools: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    passes: tuple[Mapping[str, Any], ...] = ()
    layers: tuple[Mapping[str, Any], ...] = ()
    activations: tuple[Mapping[str, Any], ...] = ()
    floats: tuple[Mapping[str, Any], ...] = ()
    parity: Mapping[str, Any] = field(default_factory=dict)
    quality: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[Mapping[str, Any], ...] = ()
    interface: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    foldings: tuple[Mapping[str, Any], ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the file's text: sorted keys, so equal manifests have equal bytes."""
        data = {"schema": SCHEMA, **asdict(self)}
        return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = FILE) -> Manifest:
        """Read a manifest.

        Raises:
            BundleError: It is no manifest, from a newer schema, or points outside of its bundle.
        """
        schema, data = _parse(text, where)
        names = {f.name for f in fields(cls) if _SINCE.get(f.name, 1) <= schema}
        if odd := sorted(names ^ set(data)):
            raise BundleError(f"{where} has wrong or missing fields: {', '.join(odd)}")
        try:
            manifest = cls(
                **{
                    f.name: _typed(f.name, str(f.type), data[f.name])
                    for f in fields(cls)
                    if f.name in names
                }
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise BundleError(f"{where} is damaged ({error}); build the bundle again") from error
        outside = [n for n in (*manifest.files, manifest.artifact) if not _inside(n)]
        if outside:
            raise BundleError(f"{where} points outside of its bundle: {', '.join(outside)}")
        return manifest


def read(folder: Path, *, check_files: bool = True) -> Manifest:
    """Read and check a bundle's manifest.

    Args:
        folder: The bundle.
        check_files: Also compare size and digest of every file.

    Raises:
        BundleError: The bundle is incomplete, edited or no bundle.
    """
    file = folder / FILE
    if not file.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {FILE}")
    if file.stat().st_size > MAX_BYTES:
        raise BundleError(f"{file} is larger than {MAX_BYTES >> 20} MiB: it is no manifest")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{file} is not text; build the bundle again") from error
    manifest = Manifest.from_json(text, str(file))
    if manifest.artifact.split("/")[0] not in {n.split("/")[0] for n in manifest.files}:
        raise BundleError(f"{file} names the artifact {manifest.artifact!r} but does not list it")
    if check_files and (problems := damaged(folder, manifest)):
        raise BundleError(f"{folder} was changed after it was built: {'; '.join(problems)}")
    return manifest


def damaged(folder: Path, manifest: Manifest) -> list[str]:
    """Return what differs from the manifest: files missing, of other size or content."""
    problems = []
    for name, info in sorted(manifest.files.items()):
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} is missing")
        elif not file.resolve().is_relative_to(folder.resolve()):
            problems.append(f"{name} is a link that leads out of it")
        elif file.stat().st_size != info.bytes:
            problems.append(f"{name} has {file.stat().st_size} bytes, not {info.bytes}")
        elif file_sha256(file) != info.sha256:
            problems.append(f"{name} has another content (sha256)")
    return problems


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(text: str, where: str) -> tuple[int, dict[str, Any]]:
    """Return the schema, one that this reader knows, and the fields."""
    try:
        data: dict[str, Any] = json.loads(text)
        schema = data.pop("schema")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise BundleError(f"{where} is not a manifest ({error}); build the bundle again") from error
    if type(schema) is not int or schema < 1:
        raise BundleError(f"{where} has no schema version, but {schema!r}; build the bundle again")
    if schema > SCHEMA:
        raise BundleError(
            f"{where} has schema {schema}; this qcompile reads up to {SCHEMA}: update qcompile"
        )
    return schema, data


def _typed(name: str, kind: str, value: Any) -> Any:
    """Return a field's value as its type says; raise ``TypeError`` if JSON held another."""
    expected = {"str": str, "Mapping": dict, "tuple": list}[kind.partition("[")[0]]
    if not isinstance(value, expected):
        raise TypeError(f"{name} is no {expected.__name__}")
    if name in ("inputs", "outputs"):
        return tuple(_tensor(item) for item in value)
    if name == "files":
        return {path: _file(info) for path, info in value.items()}
    return tuple(value) if expected is list else value


def _tensor(data: Mapping[str, Any]) -> TensorInfo:
    shape = tuple(data["shape"])
    if data["dtype"] not in DTYPES:
        raise ValueError(f"dtype {data['dtype']!r}")
    if not all(isinstance(s, str) or (type(s) is int and s >= 0) for s in shape):
        raise ValueError(f"shape {list(shape)}")
    return TensorInfo(str(data["name"]), str(data["dtype"]), shape)


def _file(data: Mapping[str, Any]) -> FileInfo:
    info = FileInfo(**data)
    if type(info.bytes) is not int or not isinstance(info.sha256, str):
        raise TypeError("a file has no size or digest")
    return info


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name
    )
