"""A Swift package around a Core ML bundle: typed inputs and outputs, and a test of the vectors.

The bundle's folder is the package, for Swift's package manager takes resources from a target's own
folder only (Swift Evolution SE-0271), and the model and the vectors are to be in the bundle once:

    Package.swift
    swift/Sources/NAME.swift        what an app calls
    swift/Tests/VectorTests.swift   `swift test`, or Xcode on a phone: the vectors against Core ML
    swift/Tests/Vectors.swift       reads vectors/*.npz

A model with labels is a classifier: its output is `classLabel` and `probabilities` by label, while the
manifest and the vectors have the one output [1, classes] that the model has in PyTorch.

The model is a `.copy` resource: `swift build` cannot process an .mlpackage, so `NAME.compiledModel()`
compiles it at run time unless Xcode has done so.

Names: a model `mobilenet-v2` becomes the type `MobilenetV2` in the module `MobilenetV2Model`. Inputs and
outputs keep their names; what Swift forbids in one becomes an underscore, a digit in front gets one
before it, a keyword one after it, and the second of two equal names a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from qcompile.runtime.manifest import TensorInfo
from qcompile.targets.coreml import swift_names as names
from qcompile.targets.coreml import swift_parts as parts
from qcompile.targets.coreml.features import LABEL, PROBABILITIES
from qcompile.targets.coreml.swift_features import Feature, features

_TEMPLATES = Path(__file__).parent / "swift_templates"
OLDEST = ("13.0", "16.0")
"""macOS and iOS that compile a model without blocking, ``MLModel.compileModel(at:) async``."""


def write_swift_package(
    folder: Path,
    *,
    name: str,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    images: Mapping[str, str],
    labels: Sequence[str] | None,
    minimum_os: tuple[str, str],
    vectors_limit_db: float,
) -> tuple[str, ...]:
    """Write the package.

    Args:
        folder: The bundle; `model.mlpackage`, `vectors`, `manifest.json` and `run.pyz` will lie there.
        name: Of the model.
        inputs: In order.
        outputs: In order.
        images: The inputs that are images, [1, channels, height, width] in the vectors, 0 to 255:
            `RGB`, `BGR` or `GRAYSCALE` by name.
        labels: What the classes of a classifier, a model of one output, are called, in order.
        minimum_os: Of macOS and of iOS, `("14.0", "17.0")`; raised to `OLDEST`.
        vectors_limit_db: SQNR that each output must reach on the vectors.

    Returns:
        The files, relative to the folder.

    Raises:
        UnsupportedError: An input or output has a dtype that Core ML has no arrays of.
    """
    given = features(inputs, images)
    returned = [] if labels else features(outputs, {})
    model = names.type_name(name)
    values = {
        "module": f"{model}Model",
        "model": model,
        "macos": _newest(minimum_os[0], OLDEST[0]),
        "ios": _newest(minimum_os[1], OLDEST[1]),
        "limit": repr(float(vectors_limit_db)),
        "float16_guard": _guard([*given, *returned]),
        **_inputs(given, model),
        **(_classifier(outputs[0].name, labels, model) if labels else _arrays(returned, model)),
    }
    files = {
        "Package.swift": "Package.swift",
        f"swift/Sources/{model}.swift": "Model.swift",
        "swift/Tests/VectorTests.swift": "VectorTests.swift",
        "swift/Tests/Vectors.swift": "Vectors.swift",
    }
    for path, template in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (_TEMPLATES / template).read_text(encoding="utf-8")
        file.write_bytes(_fill(text, values).encode())
    return tuple(sorted(files))


def _guard(arrays: Sequence[Feature]) -> str:
    half = any(not f.color and f.scalar == "Float16" for f in arrays)
    return parts.FLOAT16_GUARD if half else ""


def _inputs(given: Sequence[Feature], model: str) -> dict[str, str]:
    """Return the text of each placeholder that depends on the inputs."""
    images = [f for f in given if f.color]
    scaled = images and not any(isinstance(s, str) for f in images for s in f.info.shape[2:])
    inner = {
        "model": model,
        "image_parameters": _listed(
            f"{f.swift}: {'CGImage' if f.color else f.type}" for f in given
        ),
        "image_assignments": _indented(8, (f.assignment() for f in given)) if scaled else "",
    }
    return {
        "input_properties": _indented(4, (f.declaration("var") for f in given)),
        "input_parameters": _listed(f"{f.swift}: {f.type}" for f in given),
        "input_assignments": _indented(8, (f"self.{f.swift} = {f.swift}" for f in given)),
        "input_features": _indented(12, (f.given() for f in given)),
        "arguments": _indented(16, ",\n".join(f.vector() for f in given).split("\n")),
        "image_init": _fill(parts.IMAGE_INIT, inner) if scaled else "",
        "image_function": _fill(parts.IMAGE_FUNCTION, inner) if scaled else "",
    }


def _arrays(returned: Sequence[Feature], model: str) -> dict[str, str]:
    """Return the text of each placeholder that depends on the outputs, all of them arrays."""
    found = (f"self.{f.swift} = try qcompileOutput(found, {f.key})" for f in returned)
    compared = (f"try compare({f.key}, found.{f.swift}, expected)" for f in returned)
    return {
        "labels": "",
        "output_properties": _indented(4, (f.declaration("let") for f in returned)),
        "output_assignments": _indented(8, found),
        "comparisons": _indented(8, compared),
        "array_function": _fill(parts.ARRAY_FUNCTION, {"model": model}),
        "compare_function": parts.COMPARE_ARRAYS,
    }


def _classifier(output: str, labels: Sequence[str], model: str) -> dict[str, str]:
    """Return the same for a classifier, whose vectors have one output."""
    inner = {
        "model": model,
        "label_key": names.literal(LABEL),
        "probabilities_key": names.literal(PROBABILITIES),
        "label_literals": _indented(8, (f"{names.literal(label)}," for label in labels)),
    }
    return {
        "labels": _fill(parts.LABELS, inner),
        "output_properties": parts.CLASSIFIER_PROPERTIES,
        "output_assignments": _fill(parts.CLASSIFIER_ASSIGNMENTS, inner),
        "comparisons": f"        try compare({names.literal(output)}, found, expected)",
        "array_function": "",
        "compare_function": _fill(parts.COMPARE_PROBABILITIES, inner),
    }


def _listed(items: Iterable[str]) -> str:
    return ", ".join(items)


def _indented(spaces: int, blocks: Iterable[str]) -> str:
    lines = "\n".join(blocks).split("\n")
    return "\n".join(f"{' ' * spaces}{line}" if line else line for line in lines)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of ``<<name>>``."""
    return re.sub(r"<<(\w+)>>", lambda match: values[match[1]], text)


def _newest(*versions: str) -> str:
    """Return the highest version, with the two numbers that Package.swift asks for."""
    highest = max([int(part) for part in v.split(".")] for v in versions)
    return ".".join(map(str, highest if len(highest) > 1 else [*highest, 0]))
