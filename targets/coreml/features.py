"""Inputs and outputs as Core ML has them: its names, 32-bit types, pictures, classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interface import ImageInput
from qcompile.runtime.manifest import TensorInfo
from qcompile.targets import signature
from qcompile.targets.coreml import names

LABEL, PROBABILITIES = "classLabel", "classLabel_probs"
"""What a Core ML classifier calls its two outputs."""


def inputs(graph: Graph) -> tuple[TensorInfo, ...]:
    """Return the package's inputs; a picture is uint8 ``[1, channels, height, width]``."""
    called = names.feature_names(graph)
    found = []
    for info in signature.inputs(graph):
        dtype = "uint8" if info.name in graph.interface.images else _narrow(info.dtype)
        found.append(replace(info, name=names.input_name(called, info.name), dtype=dtype))
    return tuple(found)


def outputs(graph: Graph) -> tuple[TensorInfo, ...]:
    """Return the package's outputs; a classifier's probabilities as ``[1, classes]``."""
    called = names.feature_names(graph)
    return tuple(
        replace(o, name=names.output_name(called, o.name), dtype=_narrow(o.dtype))
        for o in signature.outputs(graph)
    )


def options(graph: Graph) -> dict[str, Any]:
    """Return what an engine must know to give and take arrays."""
    found: dict[str, Any] = {
        "inputs": [i.name for i in inputs(graph)],
        "outputs": [o.name for o in outputs(graph)],
    }
    if graph.interface.images:
        called = names.feature_names(graph)
        found["images"] = {
            names.input_name(called, n): i.color for n, i in graph.interface.images.items()
        }
    if graph.interface.labels:
        found["classifier"] = {
            "label": LABEL, "probabilities": PROBABILITIES, "labels": list(graph.interface.labels),
        }  # fmt: skip
    return found


def to_engine(graph: Graph, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the graph's inputs as arrays for the package; a picture's pixels are rounded."""
    found = {}
    for name, info in zip(graph.inputs, inputs(graph), strict=True):
        array: Any = values[name].numpy()
        if (image := graph.interface.images.get(name)) is not None:
            array = np.clip(np.rint((array - _bias(image)) / np.float32(image.scale)), 0, 255)
        found[info.name] = np.ascontiguousarray(array.astype(info.dtype))
    return found


def from_engine(graph: Graph, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the package's inputs as the graph takes them."""
    found = {}
    for (name, example), info in zip(graph.inputs.items(), inputs(graph), strict=True):
        array: Any = np.array(arrays[info.name])
        if (image := graph.interface.images.get(name)) is not None:
            array = array.astype(np.float32) * np.float32(image.scale) + _bias(image)
        found[name] = torch.from_numpy(array).to(example.dtype)
    return found


def notes(graph: Graph) -> tuple[str, ...]:
    """Return what differs from the model, a sentence each."""
    pairs = zip(signature.inputs(graph), inputs(graph), strict=True)
    narrowed = [
        f"the input {old.name!r} is {old.dtype} in PyTorch and {new.dtype} in Core ML"
        for old, new in pairs
        if old.dtype != new.dtype and old.name not in graph.interface.images
    ]
    return (*names.renamed(graph), *narrowed)


def refuse_misfits(graph: Graph) -> None:
    """Refuse labels that do not belong to the output.

    Raises:
        UnsupportedError: There is not one float output ``[1, number of labels]``.
    """
    labels = graph.interface.labels
    found = signature.outputs(graph)
    fits = len(found) == 1 and found[0].shape == (1, len(labels)) and "float" in found[0].dtype
    if labels and not fits:
        shown = ", ".join(f"{o.name}: {o.dtype}{list(o.shape)}" for o in found)
        raise UnsupportedError(
            f"class_labels() names {len(labels)} classes, so the model must have one float output of shape "
            f"[1, {len(labels)}]; it has {shown}"
        )


def _bias(image: ImageInput) -> Any:
    return np.array(image.bias, np.float32).reshape(1, -1, 1, 1)


def _narrow(dtype: str) -> str:
    return "float32" if dtype.startswith(("float", "bfloat")) else "int32"
