"""The engine's stored values equal the graph's to one code, and a wrong artifact is caught and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir
import pytest
import torch
from torch import Tensor, nn

from qcompile.compiler.driver import parity
from qcompile.targets.onnx.compare import engine_errors


class Residual(nn.Module):
    """Two convolutions, a residual add, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(x + self.second(x)).mean((2, 3)))  # type: ignore[no-any-return]


def _rows(lowered: Any) -> list[dict[str, Any]]:
    arrays = {name: value.numpy() for name, value in lowered.inputs.items()}
    model = lowered.folder / "model.onnx"
    return engine_errors(lowered.graph, model, lowered.emitted.engine, arrays)


def _gate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return parity.engine_gate(rows, 32)


@pytest.mark.parametrize("device", ["x86-avx512-vnni", "x86-avx2", "raspberry-pi-5"])
def test_each_stored_value_is_right_to_one_code(lower: Any, device: str) -> None:
    lowered = lower(Residual().eval(), torch.randn(16, 3, 8, 8), device=device)
    rows = _rows(lowered)
    stored = [row for row in rows if row["sqnr_db"] is None]
    assert len(stored) == len(rows) - 1
    assert max(row["largest"] for row in stored) <= 1
    assert max(row["differing"] for row in stored) < 0.02
    assert rows[-1]["sqnr_db"] > 90
    assert _gate(rows)["passed"]


def _edit(lowered: Any, change: Callable[[onnx_ir.Model], None]) -> None:
    model = onnx_ir.load(lowered.folder / "model.onnx")
    change(model)
    onnx_ir.save(model, lowered.folder / "model.onnx")


def _swap_axes(model: onnx_ir.Model) -> None:
    for value in model.graph.initializers.values():
        data = value.const_value.numpy()  # type: ignore[union-attr]
        if data.ndim == 4 and data.shape[0] == data.shape[1] and data.dtype == np.int8:
            value.const_value = onnx_ir.tensor(np.ascontiguousarray(data.swapaxes(0, 1)))


def _shift_zero_point(model: onnx_ir.Model) -> None:
    last = [node for node in model.graph if node.op_type == "QuantizeLinear"][-1]
    zero = last.inputs[2]
    assert zero is not None
    new = onnx_ir.Value(
        name="wrong", const_value=onnx_ir.tensor(zero.const_value.numpy() + np.uint8(1))
    )
    new.dtype, new.shape = zero.dtype, zero.shape
    model.graph.register_initializer(new)
    for user, index in list(last.outputs[0].uses()):
        user.replace_input_with(index, last.outputs[0])
    last.replace_input_with(2, new)


def _drop_padding(model: onnx_ir.Model) -> None:
    convolution = [node for node in model.graph if node.op_type == "Conv"][-1]
    convolution.attributes["pads"] = onnx_ir.AttrInt64s("pads", [0, 0, 2, 2])


@pytest.mark.parametrize("change", [_swap_axes, _shift_zero_point, _drop_padding])
def test_a_wrong_artifact_is_caught(lower: Any, change: Callable[..., None]) -> None:
    lowered = lower(Residual().eval(), torch.randn(16, 3, 8, 8))
    _edit(lowered, change)
    gate = _gate(_rows(lowered))
    assert not gate["passed"]
    assert "differ from the quantized graph, first " in gate["message"]
