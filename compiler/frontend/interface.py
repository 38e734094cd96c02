"""The parts of a model file that describe its inputs and outputs to those who use the artifact.

``image_inputs()``  ``{"image": {"scale": 1 / 127.5, "bias": [-1, -1, -1], "color": "RGB"}}``
``input_shapes()``  ``{"image": [(1, 3, 224, 224), (1, 3, 320, 320)]}``, the only shapes it may have
``class_labels()``  names of the classes, in order
``AUTHOR``, ``LICENSE``, ``VERSION``, ``DESCRIPTION``  texts
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interface import ImageInput, Interface

COLORS = ("RGB", "BGR", "GRAYSCALE")
_TEXTS = {
    "author": "AUTHOR",
    "licence": "LICENSE",
    "version": "VERSION",
    "description": "DESCRIPTION",
}
Find = Callable[[str], Any]


def read_interface(graph: Graph, module: ModuleType, find: Find, where: str) -> Interface:
    """Return what a model file says.

    Args:
        graph: The model's, for its inputs.
        module: The file.
        find: Returns one of its functions, or ``None``.
        where: The file, for errors.

    Raises:
        ModelError: It says something that does not fit the model.
    """
    images, shapes, labels = (
        _call(find, name) for name in ("image_inputs", "input_shapes", "class_labels")
    )
    return Interface(
        images={
            n: _image(graph, n, v, where)
            for n, v in _by_input(graph, images, "image_inputs", where)
        },
        shapes={
            n: _shapes(graph, n, v, where)
            for n, v in _by_input(graph, shapes, "input_shapes", where)
        },
        labels=_labels(labels, where),
        metadata=_texts(module, where),
    )


def _call(find: Find, name: str) -> Any:
    hook = find(name)
    return hook() if hook else None


def _by_input(graph: Graph, given: Any, what: str, where: str) -> list[tuple[str, Any]]:
    if given is None:
        return []
    if not isinstance(given, Mapping) or (unknown := sorted(set(given) - set(graph.inputs))):
        found = f"names {', '.join(unknown)}" if isinstance(given, Mapping) else f"gives {given!r}"
        raise ModelError(
            f"{what}() of {where} {found}; it must give a dictionary by input: {', '.join(graph.inputs)}"
        )
    return list(given.items())


def _image(graph: Graph, name: str, given: Any, where: str) -> ImageInput:
    shape = tuple(graph.inputs[name].shape)
    settings = dict(given) if isinstance(given, Mapping) else {}
    color = settings.get("color", "GRAYSCALE" if len(shape) == 4 and shape[1] == 1 else "RGB")
    channels = 1 if color == "GRAYSCALE" else 3
    bias = settings.get("bias", 0.0)
    bias = [bias] * channels if isinstance(bias, int | float) else list(bias)
    numbers = [settings.get("scale", 1.0), *bias]
    fits = (
        set(settings) <= {"scale", "bias", "color"}
        and color in COLORS
        and len(bias) == channels
        and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
        and numbers[0] != 0
    )
    if not fits:
        raise ModelError(
            f"image_inputs() of {where} gives {given!r} for {name!r}; it must give scale (a number), bias (a "
            f"number, or one a channel) and color ({', '.join(COLORS)})"
        )
    if shape[:2] != (1, channels) or len(shape) != 4 or 0 in graph.dynamic.get(name, {}):
        raise ModelError(
            f"image_inputs() of {where}: {name!r} must have the shape [1, {channels}, height, width], one "
            f"picture, not {list(shape)}{' with a free batch' if 0 in graph.dynamic.get(name, {}) else ''}"
        )
    return ImageInput(float(numbers[0]), tuple(float(b) for b in bias), color)


def _shapes(graph: Graph, name: str, given: Any, where: str) -> tuple[tuple[int, ...], ...]:
    example, free = tuple(graph.inputs[name].shape), graph.dynamic.get(name, {})
    found = tuple(tuple(int(s) for s in shape) for shape in given)
    for shape in found:
        fits = len(shape) == len(example) and all(
            _allowed(size, free[axis]) if axis in free else size == example[axis]
            for axis, size in enumerate(shape)
        )
        if not fits:
            raise ModelError(
                f"input_shapes() of {where} gives {list(shape)} for {name!r}, whose shape is "
                f"{list(example)} with axes {sorted(free) or 'none'}: free the axis in dynamic_shapes() first"
            )
    if not found:
        raise ModelError(f"input_shapes() of {where} gives no shape for {name!r}")
    return found


def _allowed(size: int, dim: Any) -> bool:
    return bool(size >= dim.min and (dim.max is None or size <= dim.max))


def _labels(given: Any, where: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ModelError(
            f"class_labels() of {where} must give a list of class names, not {given!r}"
        )
    found = tuple(str(label) for label in given)
    if len(set(found)) != len(found):
        raise ModelError(f"class_labels() of {where} names a class twice")
    return found


def _texts(module: ModuleType, where: str) -> dict[str, str]:
    found = {}
    for key, name in _TEXTS.items():
        value = getattr(module, name, None)
        if value is not None and not isinstance(value, str):
            raise ModelError(f"{name} of {where} must be a text, not {value!r}")
        if value is not None:
            found[key] = value
    return found
