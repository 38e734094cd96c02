"""QuantSpec's codes against those of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qcompile.compiler.ir.quant import QuantParams, QuantSpec


@pytest.mark.parametrize("exponent", [-9, 0, 5])
@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_ties_equal_onnx(exponent: int, zero_point: int) -> None:
    """Scales that are powers of two, so that each value is a tie exactly."""
    spec = QuantSpec(symmetric=False)
    params = QuantParams(torch.tensor(2.0**exponent), torch.tensor(zero_point))
    x = torch.arange(-600, 600) / 2 * params.scale
    assert torch.equal(spec.encode(x, params), torch.from_numpy(_onnx_quantize(x, params)))


def test_equals_onnx_up_to_ties() -> None:
    """ONNX Runtime divides by the scale, we multiply by its inverse: only a near-tie may differ."""
    spec = QuantSpec(symmetric=False)
    params = spec.params(torch.tensor(-1.7), torch.tensor(3.1))
    x = torch.randn(100_000) * 2
    ours, theirs = spec.encode(x, params).int(), torch.from_numpy(_onnx_quantize(x, params)).int()
    differ = ours != theirs
    assert int((ours - theirs).abs().max()) <= 1
    ratio = (x.double() / params.scale.double())[differ]
    assert bool(((ratio - ratio.floor() - 0.5).abs() < 1e-4).all())


def _onnx_quantize(x: Tensor, params: QuantParams) -> np.ndarray[Any, Any]:
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    make, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"])],
        "quantize",
        [make("x", kind.FLOAT, [None])],
        [make("y", kind.INT8, [None])],
        [
            onnx.numpy_helper.from_array(params.scale.numpy(), "scale"),
            onnx.numpy_helper.from_array(params.zero_point.to(torch.int8).numpy(), "zero"),
        ],
    )
    opset = onnx.helper.make_opsetid("", 21)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (codes,) = session.run(None, {"x": x.numpy()})
    return np.asarray(codes)
