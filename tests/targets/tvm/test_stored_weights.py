"""Whether a library holds a graph's weights, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.pipelines import float_pipeline
from qcompile.targets.device import load_device
from qcompile.targets.tvm import float_layers
from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm.float_layers import FloatLayer
from qcompile.targets.tvm.float_lower import lower_floats
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.stored_weights import weight_rows

VECTORS = Machine.of(load_device("raspberry-pi-4")).vectors


@pytest.fixture(scope="module")
def lowered() -> Graph:
    module = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(80, 7))
    graph = trace(module.eval(), (torch.randn(2, 3, 6, 6),))
    run(graph, float_pipeline())
    lower_floats(graph)
    return graph


def contents(graph: Graph) -> list[Any]:
    """Return all constants as a library holds them."""
    layers = [
        FloatLayer.of(node, lambda n: graph.weights[str(n.target)])
        for node in graph.calls(ops.CONV, ops.LINEAR)
    ]
    return [values for layer in layers for values in layer.constants(VECTORS)]


def differing(graph: Graph, file: Path, data: bytes) -> list[float]:
    """Return the shares of each weight that differ."""
    file.write_bytes(data)
    rows = weight_rows(graph, VECTORS, file)
    assert [(row["name"], row["exact"]) for row in rows] == [("0.weight", True), ("2.weight", True)]
    return [row["differing"] for row in rows]


def test_weights_that_are_there(lowered: Graph, tmp_path: Path) -> None:
    data = b"head" + b"".join(v.tobytes() + bytes(7) for v in reversed(contents(lowered)))
    assert differing(lowered, tmp_path / "model.so", data) == [0.0, 0.0]


@pytest.mark.parametrize("which", range(4))
def test_one_bit_is_enough(lowered: Graph, tmp_path: Path, which: int) -> None:
    values = [v.copy() for v in contents(lowered)]
    bits = values[which].view(np.uint8).reshape(-1)
    bits[len(bits) // 3] ^= 1
    data = b"".join(v.tobytes() for v in values)
    assert differing(lowered, tmp_path / "model.so", data) == [
        float(which < 2),
        float(which >= 2),
    ]


def test_weights_that_are_packed_wrongly(
    lowered: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = float_layers.weights.pack
    monkeypatch.setattr(float_layers.weights, "pack", lambda *a: -real(*a))
    data = b"".join(v.tobytes() for v in contents(lowered))
    assert differing(lowered, tmp_path / "model.so", data) == [1.0, 1.0]
