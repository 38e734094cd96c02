"""Nets through the INT8 pipeline to an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.device import load_device
from qcompile.targets.onnx.emitter import EMITTER
from qcompile.targets.order import Emitted, Order, Recipe


@dataclass
class Lowered:
    """An emitted net.

    Args:
        source: The float graph.
        graph: The quantized graph.
        folder: Holds ``model.onnx``.
        emitted: What ``emit`` returned.
        inputs: Calibration inputs.
    """

    source: Graph
    graph: Graph
    folder: Path
    emitted: Emitted
    inputs: dict[str, Tensor]

    @property
    def ops(self) -> list[str]:
        """Ops in the file."""
        return [node.op_type for node in onnx_ir.load(self.folder / "model.onnx").graph]


Lower = Callable[..., Lowered]


@pytest.fixture
def lower(tmp_path: Path) -> Lower:
    """Return a function that compiles a module for a device."""

    def compile_(
        module: nn.Module, *inputs: Tensor, device: str = "x86-avx512-vnni", precision: str = "int8"
    ) -> Lowered:
        source = trace(module, inputs)
        run(source, float_pipeline())
        scheme = EMITTER.scheme(precision, load_device(device))
        values = dict(zip(source.inputs, inputs, strict=True))
        samples = Samples([values] * 4, 4 * len(inputs[0]), "test")
        graph = source.copy()
        run(graph, EMITTER.passes(Recipe(scheme, samples, QuantizationLog())))
        folder = tmp_path / f"{device}-{precision}"
        folder.mkdir()
        with torch.no_grad():
            emitted = EMITTER.emit(graph, folder, Order("net", load_device(device), scheme))
        return Lowered(source, graph, folder, emitted, values)

    return compile_
