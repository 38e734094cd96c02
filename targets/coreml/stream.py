"""Puts weights that never were in memory together into a package that was written without them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.targets.coreml.names import plain_name
from qcompile.targets.coreml.reference.package import Package, read_package
from qcompile.targets.coreml.reference.program import Operation, Stored


def write_stored_weights(graph: Graph, package: Path, origins: Mapping[str, str]) -> int:
    """Write a graph's stored weights into a saved package, one at a time.

    Args:
        graph: The quantized graph.
        package: The ``.mlpackage``, with zeros in their place.
        origins: Node of the graph by its name in the program.

    Returns:
        How many were written.

    Raises:
        UnsupportedError: coremltools made another tensor of one, so that it has no place; names all.
    """
    if not graph.weights.stored:
        return 0
    places = dict(_places(graph, read_package(package), origins))
    missing = [n for n in graph.weights if n in graph.weights.stored and n not in places]
    if missing:
        raise UnsupportedError(
            f"coremltools stores {len(missing)} weight(s) in another form, which needs them in memory: "
            f"{', '.join(missing)}; load the model with its weights"
        )
    for name, (file, start, dtype) in places.items():
        data = graph.weights[name].to(dtype).contiguous().flatten().view(torch.uint8)
        with file.open("r+b") as stream:
            stream.seek(start)
            stream.write(data.numpy().data)
    return len(places)


def _places(
    graph: Graph, package: Package, origins: Mapping[str, str]
) -> Iterator[tuple[str, tuple[Path, int, torch.dtype]]]:
    """Yield where each stored weight's bytes belong: file, position, dtype."""
    names = {n.name: str(n.target) for n in graph.nodes if n.op == "get_attr"}
    for operation in package.program.functions["main"].block.operations:
        name = (
            names.get(origins.get(plain_name(operation.outputs[0][0]), ""))
            if _is_stored(operation)
            else None
        )
        if name is None or name not in graph.weights.stored:
            continue
        value = operation.inputs["val"]
        assert isinstance(value, Stored)
        shape = tuple(s or 0 for s in value.type.shape)
        if shape != tuple(graph.weights.peek(name).shape):
            continue
        blob = package.blobs[value.file]
        start, size = blob.locate(value.offset, value.type.element, shape)
        assert size == math.prod(shape) * value.type.dtype.itemsize
        yield name, (blob.file, start, value.type.dtype)


def _is_stored(operation: Operation) -> bool:
    return operation.type == "const" and isinstance(operation.inputs.get("val"), Stored)
