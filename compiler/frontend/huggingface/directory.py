"""The files of a Hugging Face directory: configuration, and weights that are read one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.stored import StoredTensor, stored_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelDirectory:
    """A directory that was looked at, and whose tensors were not read.

    Args:
        path: Of the directory.
        config: Of ``config.json``.
        tensors: By the names that the files give them.
        files: With the tensors, in order of their names.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Sequence[Path] = field(default=())

    @property
    def name(self) -> str:
        """The directory's name, for the bundle."""
        return self.path.resolve().name


def open_directory(path: Path) -> ModelDirectory:
    """Look at a directory's configuration and at the headers of its weights.

    Raises:
        ModelError: Something is missing, damaged, pickled or quantized already; names all of it.
    """
    if not (path / "config.json").exists():
        raise ModelError(
            f"{path} is no model: it has no config.json, so it is no Hugging Face directory; MODEL may also "
            "be a model file (.py), a program saved by torch.export (.pt2), or package.module:factory"
        )
    config = read_json(path / "config.json")
    if not config.get("architectures"):
        raise ModelError(f"{path / 'config.json'} names no architecture: it describes no model")
    if (method := config.get("quantization_config")) is not None:
        kind = method.get("quant_method", "unknown") if isinstance(method, dict) else "unknown"
        raise ModelError(
            f"{path} is quantized already ({kind}): give the checkpoint that it was made from"
        )
    files = weight_files(path)
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(_headed(file))
    if (path / INDEX).exists():
        _check_index(path / INDEX, tensors)
    return ModelDirectory(path, config, tensors, tuple(files))


def read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ModelError: There is none.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.parent} has no {file.name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds {type(found).__name__}, not an object")
    return found


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a directory: the one, or all that the index names.

    Raises:
        ModelError: There are none, or some are missing.
    """
    if not (path / INDEX).exists():
        if (path / SINGLE).is_file():
            return [path / SINGLE]
        raise ModelError(_no_weights(path))
    names = _shard_names(path / INDEX)
    if missing := [name for name in names if not (path / name).is_file()]:
        raise ModelError(
            f"{path} lacks {len(missing)} of {len(names)} shards: {', '.join(missing)}; "
            "download the model again"
        )
    return [path / name for name in names]


def _shard_names(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map: download the model again")
    names = sorted({str(name) for name in weight_map.values()})
    if outside := [n for n in names if Path(n).name != n]:
        raise ModelError(f"{index} names files outside of its directory: {', '.join(outside)}")
    return names


def _no_weights(path: Path) -> str:
    pickles = sorted(f.name for pattern in _PICKLES for f in path.glob(pattern))
    if pickles:
        return (
            f"{path} has pickled weights only ({', '.join(pickles)}), and loading a pickle runs code; "
            "save the model with safetensors (save_pretrained does)"
        )
    return f"{path} has no weights: neither {SINGLE} nor {INDEX}"


def _headed(file: Path) -> dict[str, StoredTensor]:
    """Return a file's tensors once its size is what its header says."""
    try:
        tensors = stored_tensors(file)
    except Exception as error:  # safetensors raises its own kind and OSError
        size = file.stat().st_size
        raise ModelError(
            f"{file} ({size:,} bytes) is no whole safetensors file: {error}; download it again"
        ) from error
    return tensors


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """Refuse an index that says otherwise than the shards."""
    said = {str(k): str(v) for k, v in read_json(index)["weight_map"].items()}
    found = {name: tensor.file.name for name, tensor in tensors.items()}
    problems = [
        f"{name} is not in {shard}" for name, shard in sorted(said.items()) if name not in found
    ]
    problems += [
        f"{name} is in {found[name]}, not in {shard}"
        for name, shard in sorted(said.items())
        if name in found and found[name] != shard
    ]
    problems += [f"{name} of {found[name]} is not listed" for name in sorted(found.keys() - said)]
    if problems:
        raise ModelError(f"{index} does not fit its shards: {'; '.join(problems)}")
