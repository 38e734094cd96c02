"""Sample predictions from a bundle's vectors: what PyTorch gave beside what the artifact gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.report import language_samples
from qcompile.compiler.report.figures import text
from qcompile.compiler.report.language_samples import Token
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.vectors import read_arrays

Array = NDArray[Any]
SHOWN = 8
BINS = 24
_CLASSES = 2
_IMAGE_AXES = 4
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Prediction:
    """The best class of a sample.

    Args:
        sample: Its place in the vectors.
        expected: PyTorch's class.
        expected_value: Its value in PyTorch.
        found: The artifact's class.
        found_value: Its value in the artifact.
    """

    sample: int
    expected: str
    expected_value: float
    found: str
    found_value: float

    @property
    def same(self) -> bool:
        """Whether both name the same class."""
        return self.expected == self.found


@dataclass(frozen=True)
class Errors:
    """How far an output is from PyTorch's, over all its numbers.

    Args:
        output: Its name.
        values: How many numbers it has.
        edges: Of the histogram.
        counts: Of numbers between two edges.
        agreement: Share of rows whose largest number is at the same place; ``None`` for other outputs.
    """

    output: str
    values: int
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    agreement: float | None


@dataclass(frozen=True)
class Samples:
    """What the vectors show.

    Args:
        predictions: Of a classifier, the first few.
        pictures: Images of the same samples, ``[height, width, channels]`` in bytes.
        tokens: Of a language model.
        errors: Of each output.
        why: Why there is nothing to show.
    """

    predictions: tuple[Prediction, ...] = ()
    pictures: tuple[Array, ...] = ()
    tokens: tuple[Token, ...] = ()
    errors: tuple[Errors, ...] = ()
    why: str = ""


def samples(folder: Path, manifest: Manifest) -> Samples:
    """Return what the vectors of a bundle show.

    Raises:
        BundleError: They cannot be read, or are not of one shape.
    """
    names = {kind: f"vectors/{kind}.npz" for kind in ("inputs", "outputs", "reference")}
    if missing := sorted(name for name in names.values() if name not in manifest.files):
        return Samples(why=f"the bundle has no {' and no '.join(missing)}")
    inputs, found, expected = (read_arrays(folder / name) for name in names.values())
    _check(folder, expected, found)
    errors = tuple(_errors(name, expected[name], found[name]) for name in sorted(expected))
    if manifest.format == "gguf":
        tokens = language_samples.tokens(folder / manifest.artifact, inputs, expected, found)
        return Samples(tokens=tokens, errors=errors)
    predictions = _predictions(manifest, expected, found)
    return Samples(predictions, _pictures(inputs) if predictions else (), errors=errors)


def top_agreement(expected: Array, found: Array) -> float | None:
    """Return the share of rows whose largest number is at the same place; ``None`` for other outputs."""
    if expected.dtype.kind != "f" or expected.ndim < 2 or expected.shape[-1] < _CLASSES:
        return None
    return float((expected.argmax(-1) == found.argmax(-1)).mean())


def _check(folder: Path, expected: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    shapes = [{name: array.shape for name, array in side.items()} for side in (expected, found)]
    if shapes[0] != shapes[1]:
        raise BundleError(
            f"{folder} has other outputs in vectors/reference.npz than in outputs.npz"
        )


def _predictions(
    manifest: Manifest, expected: Mapping[str, Array], found: Mapping[str, Array]
) -> tuple[Prediction, ...]:
    """Return the first samples of a model with one output ``[samples, classes]``."""
    (name, *more) = sorted(expected)
    reference, values = expected[name], found[name]
    if more or reference.dtype.kind != "f" or reference.ndim != 2 or reference.shape[1] < _CLASSES:
        return ()
    labels: Sequence[str] = [text(label) for label in manifest.interface.get("labels", ())]
    return tuple(
        Prediction(row, *_best(reference[row], labels), *_best(values[row], labels))
        for row in range(min(SHOWN, len(reference)))
    )


def _best(values: Array, labels: Sequence[str]) -> tuple[str, float]:
    best = int(values.argmax())
    return (labels[best] if best < len(labels) else f"class {best}"), float(values[best])


def _pictures(inputs: Mapping[str, Array]) -> tuple[Array, ...]:
    """Return the samples of a model with one input ``[samples, channels, height, width]``."""
    (images, *more) = inputs.values()
    if more or images.ndim != _IMAGE_AXES or images.shape[1] not in _CHANNELS or not images.size:
        return ()
    return tuple(_picture(image.astype(np.float64)) for image in images[:SHOWN])


def _picture(image: Array) -> Array:
    """Return ``[height, width, channels]`` from black, the least value, to white, the largest."""
    low, high = float(image.min()), float(image.max())
    if not np.isfinite([low, high]).all():
        return np.zeros((1, 1, 1), np.uint8)
    scaled = (image - low) / (high - low or 1.0)
    return np.round(255 * scaled.transpose(1, 2, 0)).astype(np.uint8)


def _errors(name: str, expected: Array, found: Array) -> Errors:
    difference = found.astype(np.float64) - expected.astype(np.float64)
    finite = difference[np.isfinite(difference)]
    end = float(np.abs(finite).max(initial=0.0))
    agreement = top_agreement(expected, found)
    if not end:
        return Errors(text(name), expected.size, (), (), agreement)
    counts, edges = np.histogram(finite, BINS, (-end, end))
    return Errors(
        text(name), expected.size, tuple(edges.tolist()), tuple(counts.tolist()), agreement
    )
