"""Every op that the table calls integer leaves no float op in ONNX Runtime's optimized graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from qcompile.passes.quantization.records import sqnr_db
from qcompile.targets.onnx.optimized import engine_ops


class Net(nn.Module):
    """A convolution, something in the middle, a convolution."""

    def __init__(self, middle: Callable[[Tensor], Tensor], channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(channels, 4, 1)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.first(x)))  # type: ignore[no-any-return]


MIDDLES: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "relu": (functional.relu, None),
    "relu6": (functional.relu6, None),
    "add": (lambda x: x + functional.max_pool2d(x, 3, 1, 1), "QLinearAdd"),
    "mul": (lambda x: x * functional.max_pool2d(x, 3, 1, 1), "QLinearMul"),
    "sigmoid gate": (lambda x: x * torch.sigmoid(x), "QLinearSigmoid"),
    "hard-swish": (functional.hardswish, "QLinearMul"),
    "average pool": (lambda x: functional.avg_pool2d(x, 2), "QLinearAveragePool"),
    "global pool": (lambda x: x.mean((2, 3), keepdim=True), "QLinearGlobalAveragePool"),
    "max pool": (lambda x: functional.max_pool2d(x, 2), None),
    "leaky relu": (lambda x: functional.leaky_relu(x, 0.1), "QLinearLeakyRelu"),
    "softmax": (lambda x: torch.softmax(x, 1), "QLinearSoftmax"),
    "permute": (lambda x: x.permute(0, 1, 3, 2), "Transpose"),
}


@pytest.mark.parametrize(
    "device", ["x86-avx512-vnni", pytest.param("raspberry-pi-5", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", MIDDLES)
def test_no_float_op_is_left(lower: Any, name: str, device: str) -> None:
    middle, expected = MIDDLES[name]
    lowered = lower(Net(middle).eval(), torch.randn(4, 3, 8, 8), device=device)
    found = engine_ops(lowered.folder / "model.onnx", lowered.emitted.engine["options"])
    assert lowered.emitted.floats == ()
    assert found["QLinearConv"] == 2
    if expected is not None:
        assert found[expected] >= 1, dict(found)


def test_concatenation_is_integer(lower: Any) -> None:
    net = Net(lambda x: torch.cat([x, functional.relu(x)], 1), channels=16).eval()
    lowered = lower(net, torch.randn(4, 3, 8, 8))
    found = engine_ops(lowered.folder / "model.onnx", lowered.emitted.engine["options"])
    assert lowered.emitted.floats == ()
    assert found["QLinearConcat"] == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (2, 5, 6)])
def test_linear_is_integer_whatever_its_rank_and_bias(
    lower: Any, shape: tuple[int, ...], bias: bool
) -> None:
    lowered = lower(nn.Linear(6, 4, bias=bias), torch.randn(*shape))
    found = engine_ops(lowered.folder / "model.onnx", lowered.emitted.engine["options"])
    assert lowered.emitted.floats == ()
    assert found["QGemm"] == 1


class Attention(nn.Module):
    """Scaled dot-product attention between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unsqueeze(1) for f in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.squeeze(1))  # type: ignore[no-any-return]


def test_attention_is_integer_from_end_to_end(lower: Any) -> None:
    lowered = lower(Attention(), torch.randn(4, 6, 8))
    found = engine_ops(lowered.folder / "model.onnx", lowered.emitted.engine["options"])
    assert lowered.emitted.floats == ()
    assert found["QLinearMatMul"] == 2
    assert found["QLinearSoftmax"] == 1


def test_what_stays_float_is_listed_with_its_reason(lower: Any) -> None:
    lowered = lower(Net(functional.gelu).eval(), torch.randn(4, 3, 8, 8))
    assert [(row["op"], row["count"]) for row in lowered.emitted.floats] == [("Gelu", 1)]
    assert "integer GELU" in lowered.emitted.floats[0]["why"]


@pytest.mark.parametrize("precision", ["int8", "w8a16", "fp16", "fp32"])
def test_precisions_are_close_to_float(lower: Any, precision: str) -> None:
    lowered = lower(Net(functional.relu).eval(), torch.randn(4, 3, 8, 8), precision=precision)
    expected, found = (g.run(lowered.inputs)["output"] for g in (lowered.source, lowered.graph))
    quality = sqnr_db([(expected, found)])
    assert quality is not None
    assert quality > {"int8": 28, "w8a16": 40, "fp16": 55, "fp32": 100}[precision]
