"""Core ML, by way of coremltools; macOS only. Elsewhere a bundle is verified by interpreting it."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError, MissingPackageError

Array = NDArray[Any]

UNITS = {
    "all": "ALL",
    "cpu-only": "CPU_ONLY",
    "cpu-and-gpu": "CPU_AND_GPU",
    "cpu-and-neural-engine": "CPU_AND_NE",
}
"""Where Core ML may compute, as options name it -> ``coremltools.ComputeUnit``."""
# Values of ArrayDataType and ColorSpace in coremltools' mlmodel/format/FeatureTypes.proto.
_DTYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131080: "int8", 131104: "int32"}
_BGR = 30
_CLASSIFIER = ("label", "probabilities")
"""The outputs of a classifier, as options name them."""


class Engine:
    """A ``coremltools.models.MLModel`` that Core ML has loaded.

    ``version`` is that of macOS, which Core ML is a part of.

    Args:
        artifact: ``model.mlpackage``.
        options: ``inputs`` and ``outputs``, names in the manifest's order, that of the package if they
            are left out; ``classifier``, for a package that returns a class and a dictionary: their
            names ``label`` and ``probabilities``, and ``labels`` in the order of the manifest's one
            output; ``compute_units``, one of ``UNITS``, "all" if it is left out. Others are ignored.
        threads: Core ML chooses them itself; not used.
    """

    system = "macOS"

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        if (system := platform.system()) != "Darwin":
            raise BundleError(
                f"Core ML runs on macOS and iOS only, and this is {system}; to run the package in the "
                f"reference interpreter instead: qcompile verify {artifact.parent}"
            )
        units = str(options.get("compute_units", "all"))
        if units not in UNITS:
            raise BundleError(f"no compute units {units!r}; there are: {', '.join(UNITS)}")
        self.version: str = platform.mac_ver()[0]
        self._model = self._load(artifact, UNITS[units])
        description = self._model.get_spec().description
        self._inputs = {i.name: i.type for i in description.input}
        self._outputs = {o.name: o.type.multiArrayType.dataType for o in description.output}
        self._names = _known("input", options.get("inputs", self._inputs), self._inputs)
        self._classifier = options.get("classifier")
        if self._classifier is not None:
            _known("output", [self._classifier[k] for k in _CLASSIFIER], self._outputs)
            return
        self._wanted = _known("output", options.get("outputs", self._outputs), self._outputs)
        if bad := [name for name in self._wanted if self._outputs[name] not in _DTYPES]:
            raise BundleError(
                f"only arrays are read, which these outputs are not: {', '.join(bad)}"
            )

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the manifest's order."""
        given = {
            name: _feature(value, self._inputs[name])
            for name, value in zip(self._names, inputs, strict=True)
        }
        try:
            found = self._model.predict(given)
        except Exception as error:
            raise BundleError(f"{self._core_ml()} cannot run it: {_first_line(error)}") from error
        if self._classifier is not None:
            by_label = found[self._classifier["probabilities"]]
            return [_probabilities(by_label, self._classifier["labels"])]
        return [_array(found[name], self._outputs[name]) for name in self._wanted]

    def _load(self, artifact: Path, units: str) -> Any:
        """Return the loaded model; coremltools itself only warns if Core ML refuses one."""
        logging.getLogger("coremltools").setLevel(
            logging.ERROR
        )  # which speaks of missing frameworks
        try:
            import coremltools
        except ImportError as error:
            raise MissingPackageError("coremltools") from error
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                model = coremltools.models.MLModel(
                    str(artifact), compute_units=coremltools.ComputeUnit[units]
                )
            except Exception as error:
                raise BundleError(f"{self._core_ml()} refuses it: {_first_line(error)}") from error
        if model.__proxy__ is None:
            reasons = [_first_line(w.message) for w in caught if w.category is RuntimeWarning]
            reason = (reasons or ["it was made for a newer macOS; update macOS"])[0]
            raise BundleError(f"{self._core_ml()} refuses it: {reason}")
        return model

    def _core_ml(self) -> str:
        return f"Core ML of macOS {self.version}"


def _known(kind: str, names: Iterable[str], found: Mapping[str, Any]) -> list[str]:
    if set(names) != set(found):
        raise BundleError(
            f"the manifest has the {kind}s {', '.join(names)}, and the package {', '.join(found)}; "
            "build the bundle again"
        )
    return list(names)


def _feature(value: Array, kind: Any) -> Any:
    """Return an input as coremltools takes it: half precision as single, pixels as an image.

    Core ML rounds single precision to the half precision of such an input itself.
    """
    if kind.WhichOneof("Type") == "imageType":
        return _image(value, kind.imageType.colorSpace)
    return np.ascontiguousarray(value, np.float32 if value.dtype == np.float16 else None)


def _image(value: Array, colours: int) -> Any:
    """From uint8 [1, channels, height, width], channels in the model's order, to an image."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError("pillow") from error
    planes = value[0]
    if len(planes) == 1:
        return Image.fromarray(planes[0])
    if colours == _BGR:
        planes = planes[::-1]
    return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def _array(value: Any, kind: int) -> Array:
    """Return an output in the dtype that the package declares; Core ML may compute in another."""
    return np.asarray(value, np.dtype(_DTYPES[kind]))


def _probabilities(by_label: Mapping[str, float], labels: Sequence[str]) -> Array:
    """Return a classifier's dictionary as [1, classes], in the order of the labels."""
    if set(by_label) != set(labels):
        raise BundleError(
            f"the package has other classes than the manifest, {_some(by_label)} and {_some(labels)}; "
            "build the bundle again"
        )
    return np.array([[by_label[label] for label in labels]], np.float32)


def _some(labels: Iterable[str]) -> str:
    """Return a few of many labels."""
    found = sorted(labels)
    return ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")


def _first_line(error: object) -> str:
    """Return what Core ML says, without coremltools' words before it."""
    text = str(error).rpartition("exception message was: ")[2]
    return (text.splitlines() or ["no reason given"])[0]
