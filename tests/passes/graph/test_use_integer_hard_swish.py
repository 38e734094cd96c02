"""use-integer-hard-swish: near the float function, and integer from convolution to convolution."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, OBSERVE, aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.use_integer_hard_swish import UseIntegerHardSwish
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.integer_ops import IntegerOps
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db

Op = Callable[[Tensor], Tensor]
OPS = IntegerOps(
    layers=frozenset([aten.conv2d.default]),
    needs_output=frozenset([aten.conv2d.default]),
    arithmetic=frozenset([aten.add.Tensor, aten.mul.Tensor]),
    products=frozenset(),
    moves=frozenset(),
    unit_range=frozenset(),
)
WEIGHT = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


class Chain(nn.Module):
    """Two convolutions and what is between them."""

    def __init__(self, between: Op) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.first.weight.data *= 4  # beyond -3 and 3 on both sides
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.between(self.first(x)))  # type: ignore[no-any-return]


class Only(nn.Module):
    def __init__(self, op: Op) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("op", [F.hardswish, F.hardsigmoid])
def test_gate_is_within_half_a_code(op: Op, signed: bool) -> None:
    x = torch.linspace(-8, 8, 16001)
    graph = trace(Only(op), {"x": x})
    assert run(graph, [UseIntegerHardSwish(signed)])[0].rewrites == 1
    error = (graph.run({"x": x})["output"] - op(x)).abs()
    allowed = 0.5 / 255 * (x.abs() if op is F.hardswish else torch.ones(()))
    assert bool((error <= allowed + 1e-6).all())
    assert run(graph, [UseIntegerHardSwish(signed)])[0].rewrites == 0


def test_golden(golden: Callable[[str, str], None]) -> None:
    graph = trace(Only(lambda x: F.hardswish(x) * F.hardsigmoid(x)), {"x": torch.randn(2, 3)})
    assert run(graph, [UseIntegerHardSwish(signed=True)])[0].rewrites == 2
    golden("use_integer_hard_swish.txt", graph.to_text())


@pytest.mark.parametrize("op", [F.silu, F.relu6])
def test_leaves_other_functions(op: Op) -> None:
    graph = trace(Only(op), {"x": torch.randn(2, 3)})
    assert run(graph, [UseIntegerHardSwish()])[0].rewrites == 0


def test_leaves_half_precision() -> None:
    graph = trace(Only(F.hardswish), {"x": torch.randn(2, 3).half()})
    assert run(graph, [UseIntegerHardSwish()])[0].rewrites == 0


def observed(graph: Graph, activation: QuantSpec) -> list[str]:
    run(graph, [InsertObservers(OPS, activation, WEIGHT)])
    return [str(n.args[0]) for n in graph.calls(OBSERVE)]


def test_pair_is_not_observed_again() -> None:
    graph = trace(Chain(F.hardswish), {"x": torch.randn(1, 4, 8, 8)})
    run(graph, [UseIntegerHardSwish()])
    spec = QuantSpec(signed=False, symmetric=False)
    names = ["x", "first_weight", "conv2d", "mul_tensor", "second_weight", "conv2d_1"]
    assert sorted(observed(graph, spec)) == sorted(names)
    pair = [n for n in graph.calls(DEQUANTIZE) if n.args[1] == 1 / 255]
    assert len(pair) == 1


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("op", [F.hardswish, F.hardsigmoid])
def test_engine_computes_in_integers(op: Op, signed: bool, tmp_path: Path) -> None:
    x = torch.randn(4, 4, 8, 8)
    module = Chain(op)
    expected = module(x).detach()
    graph = trace(module, {"x": x})
    batches = [{"x": torch.randn(4, 4, 8, 8)} for _ in range(8)]
    run(
        graph,
        [
            UseIntegerHardSwish(signed),
            InsertObservers(OPS, QuantSpec(signed=signed, symmetric=False), WEIGHT),
            Quantize(Samples(batches, 32, "random"), QuantizationLog(), rounding="nearest"),
        ],
    )
    got = graph.run({"x": x})["output"]
    assert (sqnr_db([(expected, got)]) or 0.0) > 25
    kinds, result = optimized(graph, x, tmp_path, signed)
    middle = ["QLinearAdd", "QLinearMul"] if op is F.hardswish else ["QLinearAdd"]
    wanted = ["QuantizeLinear", "QLinearConv", *middle, "QLinearConv", "DequantizeLinear"]
    assert kinds == wanted
    assert (sqnr_db([(got, result)]) or 0.0) > 30  # ties and the order of sums differ by a code


def optimized(graph: Graph, x: Tensor, folder: Path, signed: bool) -> tuple[list[str], Tensor]:
    """Return the ops that ONNX Runtime runs, layout changes left out, and its output."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    program: Any = torch.onnx.export(graph.exported(), dynamo=True, verbose=False, opset_version=21)
    program.save(folder / "model.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    if signed:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = ort.InferenceSession(
        folder / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    nodes = onnx.load(folder / "optimized.onnx").graph.node
    return [n.op_type for n in nodes if n.op_type != "Transpose"], torch.from_numpy(output)
