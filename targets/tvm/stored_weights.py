"""Whether a library holds a graph's weights: the very bytes that its kernels decode."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompile.compiler.ir.graph import Graph
from qcompile.targets.forced import row
from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm.float_layers import FloatLayer
from qcompile.targets.tvm.kernels.vectors import Vectors

_HEAD = 64
"""Bytes that are looked for first."""


def weight_rows(lowered: Graph, vectors: Vectors, library: Path) -> list[dict[str, Any]]:
    """Return a row of the error engine for each weight of a float layer; not one value may differ.

    A weight is right if unpacking what was packed gives the graph's codes again, and if the library has these
    bytes, scales included.

    Args:
        lowered: The graph that the library was compiled from.
        vectors: For which.
        library: The file.
    """
    data = library.read_bytes()
    rows = []
    for node in lowered.calls(ops.CONV, ops.LINEAR):
        layer = FloatLayer.of(node, lambda n: lowered.weights[str(n.target)])
        packed = layer.constants(vectors)
        same = np.array_equal(layer.unpacked(packed[0]), layer.weight)
        right = same and all(_holds(data, values) for values in packed)
        difference = torch.full((layer.weight.size,), 0.0 if right else math.inf)
        name = str(getattr(node.args[1], "target", node.name))
        rows.append({**row(name, difference), "exact": True})
    return rows


def _holds(data: bytes, values: NDArray[Any]) -> bool:
    """Return whether an array's bytes are somewhere in a file."""
    wanted = np.ascontiguousarray(values).tobytes()
    start = data.find(wanted[:_HEAD])
    while start >= 0:
        if data[start : start + len(wanted)] == wanted:
            return True
        start = data.find(wanted[:_HEAD], start + 1)
    return False
