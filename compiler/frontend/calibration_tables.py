"""Calibration data in every form that it comes in -> a table of samples by index.

.npz or .safetensors keyed by input name, one sample a row; one .npy for a model with one input; a
folder of .npy files, one sample each; what ``calibration()`` returns; or ``random``. Files are read when
rows are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from qcompile.compiler.ir.errors import CalibrationError
from qcompile.compiler.ir.graph import Graph

RANDOM = "random"
RANDOM_COUNT = 64
Rows = Callable[[Sequence[int]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Table:
    """Samples by index.

    Args:
        count: How many there are.
        rows: Returns those of some indices, stacked.
        source: For the manifest.
    """

    count: int
    rows: Rows
    source: str


def read_table(graph: Graph, given: Any, num_samples: int | None, seed: int) -> Table:
    """Return the samples that a user gave, named as the graph's inputs.

    Args:
        graph: Whose inputs they are for.
        given: A path, ``random``, or what ``calibration()`` returns.
        num_samples: How many random ones; 64 by default.
        seed: For random ones.

    Raises:
        CalibrationError: They are no arrays, or names or numbers of samples do not fit.
    """
    if isinstance(given, str | Path):
        if str(given) == RANDOM:
            return _random(graph, num_samples or RANDOM_COUNT, seed)
        return _file(graph, Path(given))
    if isinstance(given, Mapping):
        return _arrays(graph, given, "calibration()")
    if isinstance(given, Tensor | np.ndarray):
        return _arrays(graph, {_only_input(graph, "calibration()"): given}, "calibration()")
    if isinstance(given, Iterable):
        return _listed(graph, list(given))
    raise CalibrationError(
        "calibration() must return arrays by input name or a list of samples, "
        f"not {type(given).__name__}"
    )


def _file(graph: Graph, path: Path) -> Table:
    if not path.exists():
        raise CalibrationError(f"calibration data {path} does not exist")
    readers = {".npz": _npz, ".safetensors": _safetensors, ".npy": _npy}
    if path.is_dir():
        return _folder(graph, path)
    if path.suffix not in readers:
        raise CalibrationError(
            f"{path.name}: calibration data is .npz, .npy, .safetensors, a folder of .npy, or "
            f"'{RANDOM}', not {path.suffix or 'a file without a suffix'}"
        )
    try:
        return readers[path.suffix](graph, path)
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(f"{path.name} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if "allow_pickle" in text or "Python objects" in text:
        return "it holds pickled Python objects, and loading those runs code; save plain arrays"
    return text


def _npz(graph: Graph, path: Path) -> Table:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
        return _arrays(graph, {name: data[name] for name in data.files}, path.name)


def _npy(graph: Graph, path: Path) -> Table:
    data = np.load(path, mmap_mode="r", allow_pickle=False)
    return _arrays(graph, {_only_input(graph, path.name): data}, path.name)


def _safetensors(graph: Graph, path: Path) -> Table:
    with safe_open(path, framework="pt") as reader:
        counts = {n: reader.get_slice(n).get_shape()[0] for n in reader.keys()}  # noqa: SIM118
    _check_names(graph, set(counts), path.name)
    _check_counts(counts, path.name)

    def rows(indices: Sequence[int]) -> Mapping[str, Tensor]:
        with safe_open(path, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in graph.inputs}
            return {n: torch.stack([s[i] for i in indices]) for n, s in slices.items()}

    return Table(next(iter(counts.values())), rows, path.name)


def _folder(graph: Graph, path: Path) -> Table:
    name = _only_input(graph, path.name)
    files = sorted(path.glob("*.npy"))

    def rows(indices: Sequence[int]) -> Mapping[str, Tensor]:
        try:
            arrays = [np.load(files[i], allow_pickle=False) for i in indices]
            return {name: torch.from_numpy(np.stack(arrays))}
        except (OSError, ValueError, EOFError, TypeError) as error:
            names = f"{files[indices[0]].name} to {files[indices[-1]].name}"
            raise CalibrationError(f"{path.name}, {names}: {_reason(error)}") from error

    return Table(len(files), rows, path.name)


def _arrays(graph: Graph, arrays: Mapping[str, Any], source: str) -> Table:
    _check_names(graph, set(arrays), source)
    plain = {name: _plain(value, name, source) for name, value in arrays.items()}
    counts = {name: len(value) if value.ndim else 0 for name, value in plain.items()}
    _check_counts(counts, source)

    def rows(indices: Sequence[int]) -> Mapping[str, Tensor]:
        picked = {n: np.ascontiguousarray(plain[n][list(indices)]) for n in graph.inputs}
        return {n: torch.from_numpy(v) for n, v in picked.items()}

    return Table(next(iter(counts.values())), rows, source)


def _listed(graph: Graph, samples: list[Any]) -> Table:
    """Take samples with their batch axis, as ``inputs()`` gives them, and join them."""
    source = "calibration()"
    named = [_named(graph, sample, source) for sample in samples]
    if not named:
        return Table(0, lambda indices: {}, source)
    try:
        joined = {n: np.concatenate([s[n] for s in named]) for n in graph.inputs}
    except ValueError as error:
        raise CalibrationError(f"samples of {source} cannot be joined: {error}") from error
    return _arrays(graph, joined, source)


def _named(graph: Graph, sample: Any, source: str) -> Mapping[str, Any]:
    values = sample if isinstance(sample, Mapping | list | tuple) else [sample]
    if not isinstance(values, Mapping):
        if len(values) != len(graph.inputs):
            raise CalibrationError(
                f"a sample of {source} has {len(values)} value(s); "
                f"the model's inputs are {', '.join(graph.inputs)}"
            )
        values = dict(zip(graph.inputs, values, strict=True))
    _check_names(graph, set(values), source)
    return {name: _plain(value, name, source) for name, value in values.items()}


def _plain(value: Any, name: str, source: str) -> Any:
    """Return a numpy array of numbers.

    Raises:
        CalibrationError: It is none.
    """
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{source}: {name} is no array of numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise CalibrationError(f"{source}: {name} has dtype {array.dtype}; it must hold numbers")
    return array


def _random(graph: Graph, count: int, seed: int) -> Table:
    def one(name: str, index: int) -> Tensor:
        example = graph.inputs[name]
        key = hashlib.sha256(f"{seed} {name} {index}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
        if example.dtype.is_floating_point:
            return torch.randn(example.shape[1:], generator=generator).to(example.dtype)
        choices = example.flatten()
        picked = torch.randint(len(choices), example.shape[1:], generator=generator)
        return choices[picked]

    def rows(indices: Sequence[int]) -> Mapping[str, Tensor]:
        return {n: torch.stack([one(n, i) for i in indices]) for n in graph.inputs}

    return Table(count, rows, RANDOM)


def _only_input(graph: Graph, source: str) -> str:
    if len(graph.inputs) != 1:
        raise CalibrationError(
            f"{source} has no names, and the model has the inputs {', '.join(graph.inputs)}: "
            "give an .npz or .safetensors keyed by input name"
        )
    return next(iter(graph.inputs))


def _check_names(graph: Graph, found: set[str], source: str) -> None:
    if found != set(graph.inputs):
        raise CalibrationError(
            f"{source} has {', '.join(sorted(found)) or 'nothing'}; "
            f"the model's inputs are {', '.join(graph.inputs)}"
        )


def _check_counts(counts: Mapping[str, int], source: str) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in sorted(counts.items()))
        raise CalibrationError(f"{source} has different numbers of samples ({listed})")
