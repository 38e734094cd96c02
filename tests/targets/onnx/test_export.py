"""What lies in the file: names, axes, no trace of this machine, no byte that says nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.ops import DEQUANTIZE_PER_CHANNEL
from qcompile.targets.device import load_device
from qcompile.targets.onnx.emitter import EMITTER
from qcompile.targets.onnx.export import export
from qcompile.targets.onnx.registry import OPSET, registry
from qcompile.targets.order import Order


class Small(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = functional.relu(self.conv(image)).mean((2, 3))
        return {"logits": self.head(features), "features": features}


def test_names_and_free_axes_are_the_users() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = trace(Small(), {"image": torch.randn(2, 3, 8, 8)}, {"image": {0: batch}})
    model = export(graph)
    assert [v.name for v in model.graph.inputs] == ["image"]
    assert [v.name for v in model.graph.outputs] == ["logits", "features"]
    assert [str(d) for d in model.graph.inputs[0].shape or []] == ["batch", "3", "8", "8"]
    assert [str(d) for d in model.graph.outputs[0].shape or []] == ["batch", "2"]
    assert model.opset_imports[""] == OPSET


def test_the_file_is_valid_and_tells_nothing_of_this_machine(lower: Any) -> None:
    lowered = lower(Small().eval(), torch.randn(8, 3, 8, 8))
    data = (lowered.folder / "model.onnx").read_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    for word in (b".py", b"/home", b"/tmp", b"torch", b"File "):
        assert word not in data


def test_the_file_is_the_same_each_time() -> None:
    """The table of translations is made once, and no export changes it."""
    graph = trace(Small().eval(), {"image": torch.zeros(2, 3, 8, 8)})
    first, second = (onnx_ir.to_proto(export(graph.copy())).SerializeToString() for _ in range(2))

    assert first == second
    assert registry(OPSET) is registry(OPSET)


def test_our_codes_arrive_bit_for_bit(lower: Any) -> None:
    lowered = lower(Small().eval(), torch.randn(8, 3, 8, 8))
    model = onnx_ir.load(lowered.folder / "model.onnx")
    stored = {n: v.const_value.numpy() for n, v in model.graph.initializers.items()}  # type: ignore[union-attr]
    for node in lowered.graph.calls(DEQUANTIZE_PER_CHANNEL):
        codes, scales = (lowered.graph.constant(a) for a in node.args[:2])
        assert codes is not None
        assert scales is not None
        matches = [a for a in stored.values() if a.dtype == np.int8 and a.size == codes.numel()]
        flat = codes.numpy().reshape(-1)
        either = [np.array_equal(a.reshape(-1), flat) for a in matches]
        turned = [np.array_equal(a.T.reshape(-1), flat) for a in matches if a.ndim == 2]
        assert any(either + turned)
        assert any(np.array_equal(a, scales.numpy()) for a in stored.values())


def test_activations_and_zero_points_that_say_nothing_are_left_out(lower: Any) -> None:
    lowered = lower(Small().eval(), torch.randn(8, 3, 8, 8))
    assert "Relu" not in lowered.ops
    weights = [
        node
        for node in onnx_ir.load(lowered.folder / "model.onnx").graph
        if node.op_type == "DequantizeLinear" and len(node.inputs) == 2
    ]
    assert len(weights) >= 1


def test_the_same_graph_gives_the_same_bytes(lower: Any) -> None:
    lowered = lower(Small().eval(), torch.randn(8, 3, 8, 8))
    again = lowered.folder / "again"
    again.mkdir()
    device = load_device("x86-avx512-vnni")
    EMITTER.emit(lowered.graph, again, Order("net", device, EMITTER.scheme("int8", device)))
    first, second = (f / "model.onnx" for f in (lowered.folder, again))
    assert first.read_bytes() == second.read_bytes()


@torch.library.custom_op("qcompile_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An op that no target knows."""
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Foreign(nn.Module):
    """Uses an op without an ONNX form, twice."""

    def forward(self, x: Tensor) -> Tensor:
        return twice(twice(x) + 1)  # type: ignore[no-any-return]


def test_unsupported_ops_are_all_named_before_any_work() -> None:
    graph = trace(Foreign(), (torch.randn(2, 3),))
    with pytest.raises(UnsupportedError, match=r"2 part.*\(at twice\), .*\(at twice_1\)"):
        EMITTER.check(graph, load_device("x86-avx512-vnni"))


class Cast(nn.Module):
    """``torch.export`` adds an assertion, which ONNX has no form for, beside the cast."""

    def forward(self, ids: Tensor) -> Tensor:
        return ids.to(torch.float32) + 1


def test_an_assertion_that_nobody_reads_is_no_unsupported_op() -> None:
    graph = trace(Cast(), (torch.ones(2, 3, dtype=torch.int64),))
    assert any("assert" in str(node.target) for node in graph.nodes)
    EMITTER.check(graph, load_device("x86-avx512-vnni"))


@pytest.mark.parametrize(
    ("device", "bits", "signed"),
    [
        ("x86-avx512-vnni", 8, False),
        ("x86-amx", 8, False),
        ("x86-avx2", 7, False),
        ("raspberry-pi-5", 8, True),
        ("web-wasm", 8, False),
    ],
)
def test_the_scheme_follows_the_instruction_set(device: str, bits: int, signed: bool) -> None:
    scheme = EMITTER.scheme("int8", load_device(device))
    assert scheme.weight is not None
    assert scheme.activation is not None
    assert (scheme.weight.bits, scheme.activation.signed) == (bits, signed)
