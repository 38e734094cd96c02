"""Rewrites an ``.mlpackage`` so that its bytes depend on the model alone.

coremltools stamps the date, random identifiers and a debugging file; protobuf maps have no order of their
own. Here identifiers come from the names of what they identify, and maps are written sorted.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_AUTHOR = "com.apple.CoreML"
_MODEL, _WEIGHTS = f"{_AUTHOR}/model.mlmodel", f"{_AUTHOR}/weights"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://apple.github.io/coremltools/mlpackage")
_STAMPS = "com.github.apple.coremltools."


def rewrite_package(spec: Any, folder: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Write anew what coremltools has written, but for the weights.

    Args:
        spec: The model description.
        folder: The ``.mlpackage``.
        metadata: ``author``, ``licence``, ``version``, ``description``.

    Returns:
        The files, relative to the package.
    """
    _describe(spec.description.metadata, metadata)
    data = folder / "Data"
    (data / _MODEL).write_bytes(spec.SerializeToString(deterministic=True))
    items = {_MODEL: "CoreML Model Specification"}
    if (data / _WEIGHTS).is_dir():
        items[_WEIGHTS] = "CoreML Model Weights"
    _remove_others(folder, items)
    (folder / "Manifest.json").write_text(_manifest(items), encoding="utf-8")
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    for file in files:
        file.chmod(0o644)
    return tuple(f.relative_to(folder).as_posix() for f in files)


def _describe(target: Any, metadata: Mapping[str, str]) -> None:
    for key in [k for k in target.userDefined if k.startswith(_STAMPS)]:
        if key.endswith("conversion_date"):
            del target.userDefined[key]
    target.author = metadata.get("author", "")
    target.license = metadata.get("licence", "")
    target.versionString = metadata.get("version", "")
    target.shortDescription = metadata.get("description", "")


def _remove_others(folder: Path, items: Mapping[str, str]) -> None:
    for path in sorted(folder.iterdir()):
        if path.name not in ("Data", "Manifest.json"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _manifest(items: Mapping[str, str]) -> str:
    entries = {
        str(uuid.uuid5(_NAMESPACE, path)): {
            "author": _AUTHOR,
            "description": description,
            "name": path.rpartition("/")[2],
            "path": path,
        }
        for path, description in items.items()
    }
    root = str(uuid.uuid5(_NAMESPACE, _MODEL))
    data = {
        "fileFormatVersion": "1.0.0",
        "itemInfoEntries": dict(sorted(entries.items())),
        "rootModelIdentifier": root,
    }
    return json.dumps(data, indent=4) + "\n"
