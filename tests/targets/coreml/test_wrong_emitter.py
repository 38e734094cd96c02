"""An emitter that is wrong in one place is caught by ``engine_errors`` and the gate, whatever is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_BLOCKWISE, LOOKUP, QUANTIZE, aten
from qcompile.targets.coreml import emitter, lowering, recurrent

Emit = Callable[..., Any]
Change = Callable[[Graph], None]


class Vision(nn.Module):
    """Layers whose weights are square, so that swapped axes fit; without padding, sizes are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, stride=3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.first(x) * 12)
        x = self.norm(self.second(x).permute(0, 2, 3, 1))
        return self.head(x).transpose(1, 2).flatten(1)  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """An LSTM and a layer that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 4, bidirectional=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])  # type: ignore[no-any-return]


def _constant(graph: Graph, name: str, value: Tensor) -> fx.Node:
    return graph.add_constant(name, value)


def _int8(graph: Graph, weight: Tensor) -> fx.Node:
    shape = (-1, *[1] * (weight.dim() - 1))
    scale = (weight.flatten(1).abs().amax(1) / 120).half().float().reshape(shape)
    zero = torch.tensor([3, -2, 0, 5], dtype=torch.int8).repeat(len(scale) // 4).reshape(shape)
    codes = (weight / scale + zero).round().clamp(-128, 127).to(torch.int8)
    stored = [_constant(graph, n, t) for n, t in (("codes", codes), ("s", scale), ("z", zero))]
    return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, 8, 16)


def _palette(graph: Graph, weight: Tensor) -> fx.Node:
    lut = weight.flatten().sort().values[:: weight.numel() // 16][:16].half().float()[None]
    indices = torch.bucketize(weight, (lut[0, 1:] + lut[0, :-1]) / 2).to(torch.uint8)
    stored = [_constant(graph, "indices", indices), _constant(graph, "lut", lut)]
    return graph.add_call(LOOKUP, *stored, None, 16)


def _store(graph: Graph, name: str, store: Callable[[Graph, Tensor], fx.Node]) -> None:
    (weight,) = [n for n in graph.nodes if str(n.target) == name]
    (layer,) = weight.users
    value = graph.constant(weight)
    assert value is not None
    with graph.before(layer):
        layer.replace_input_with(weight, store(graph, value))


def _quantize(graph: Graph) -> None:
    """Store the two convolutions and the linear layer, and the activation between the first two."""
    _store(graph, "first.weight", _int8)
    _store(graph, "second.weight", _palette)
    _store(graph, "head.weight", _int8)
    second = graph.calls(aten.conv2d.default)[1]
    x = second.args[0]
    limits = (6 / 250, -125, -128, 127, torch.int8)
    assert isinstance(x, fx.Node)
    with graph.before(second):
        codes = graph.add_call(QUANTIZE, x, *limits, name="x_q")
        second.replace_input_with(x, graph.add_call(DEQUANTIZE, codes, *limits, name="x_dq"))


def _set(node: fx.Node, index: int, value: Any) -> None:
    node.args = (*node.args[:index], value, *node.args[index + 1 :])


def _edit(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    def wrong(graph: Graph) -> None:
        graph.weights[name] = change(graph.weights[name]).contiguous()

    return wrong


def _argument(op: Any, index: int, value: Any, which: int = 0) -> Change:
    return lambda graph: _set(graph.calls(op)[which], index, value)


def _shifted_activation(graph: Graph) -> None:
    """Both ops agree on the wrong zero point: values are right, codes are not."""
    for node in graph.calls(QUANTIZE, DEQUANTIZE):
        _set(node, 2, -126)


def _dilated(graph: Graph) -> None:
    second = graph.calls(aten.conv2d.default)[1]
    second.args = (*second.args[:4], [2, 2], [2, 2])


def _one_of(values: Tensor) -> Tensor:
    values = values.clone()
    values.view(-1)[7] += 1
    return values


WRONG: dict[str, Change] = {
    "axes of a linear weight swapped": _edit("codes_2", lambda t: t.mT),
    "axes of a convolution's weight swapped": _edit("codes", lambda t: t.swapaxes(0, 1)),
    "kernel transposed": _edit("codes", lambda t: t.mT),
    "kernel mirrored": _edit("codes", lambda t: t.flip(-1)),
    "one code wrong": _edit("codes", _one_of),
    "zero point of a weight off by one": _edit("z", lambda t: t + 1),
    "zero point of one channel off by one": _edit("z", lambda t: t + torch.eye(4, 1).view_as(t).to(t)),
    "zero point of quantize off by one": _argument(QUANTIZE, 2, -126),
    "zero point of dequantize off by one": _argument(DEQUANTIZE, 2, -126),
    "zero point of an activation off by one": _shifted_activation,
    "scale of an activation wrong": _argument(DEQUANTIZE, 1, 6 / 240),
    "scales of the neighbouring channel": _edit("s", lambda t: t.roll(1, 0)),
    "palette off by one index": _edit("indices", lambda t: (t + 1) % 16),
    "palette off by one entry": _edit("lut", lambda t: t.roll(1, 1)),
    "padding of a convolution": _argument(aten.conv2d.default, 4, [0, 0]),
    "dilation of a convolution": _dilated,
    "limit of relu6": _argument(aten.clamp.default, 2, 5.5),
    "epsilon of a norm": _argument(aten.layer_norm.default, 4, 1e-2),
    "permutation reversed": _argument(aten.permute.default, 1, [0, 3, 2, 1]),
    "transposed axes": _argument(aten.transpose.int, 2, 1),
    "bias of the neighbouring channel": _edit("head.bias", lambda t: t.roll(1)),
}  # fmt: skip


@cache
def _traced() -> tuple[Graph, Tensor]:
    torch.manual_seed(1)
    net, x = Vision().eval(), torch.randn(1, 4, 12, 12)
    net.norm.weight.data.normal_()
    return trace(net, x), x


@pytest.fixture
def vision(emit: Emit) -> Callable[[], Any]:
    """Give a function that emits the same quantized net each time."""

    def make() -> Any:
        graph, x = _traced()
        return emit(graph.copy(), x, change=_quantize)

    return make


def test_the_right_emitter_passes(vision: Callable[[], Any]) -> None:
    emission = vision()
    assert emission.gate()["passed"], emission.gate()
    assert len([r for r in emission.rows if "exact" in r]) == 3
    floats = [r["sqnr_db"] for r in emission.rows if r["sqnr_db"] is not None]
    assert min(floats) > 69


OFTEN = (
    "axes of a linear weight swapped",
    "kernel mirrored",
    "one code wrong",
    "zero point of one channel off by one",
    "zero point of an activation off by one",
    "palette off by one index",
    "padding of a convolution",
    "limit of relu6",
    "permutation reversed",
)
"""Tested in each run of the suite; the rest are slow, being many."""
_NAMES = [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in WRONG]


@pytest.mark.parametrize("name", _NAMES)
def test_a_wrong_emitter_is_caught(
    vision: Callable[[], Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = emitter.lower

    def wrong(graph: Graph) -> Any:
        changed = graph.copy()
        before = changed.to_text()
        changed.module = fx.GraphModule(dict(graph.module.named_buffers()), changed.module.graph)
        WRONG[name](changed)
        assert changed.to_text() != before, "the emitter is not wrong"
        return lower(changed)

    monkeypatch.setattr(emitter, "lower", wrong)
    emission = vision()
    gate = emission.gate()
    assert not gate["passed"], [(r["name"], r["sqnr_db"]) for r in emission.rows]
    assert "differ from the quantized graph, first " in gate["message"]


def _swapped(values: Any, rows: int) -> Any:
    return values


_right_weights = recurrent._weights


def _halves_swapped(weights: list[Any], has_bias: bool, suffix: str) -> dict[str, Any]:
    return _right_weights(weights, has_bias, "" if suffix else "_back")


def _one_bias(weights: list[Any], has_bias: bool, suffix: str) -> dict[str, Any]:
    found = _right_weights(weights, has_bias, suffix)
    first = recurrent.gates_in_order(weights[2].val, len(weights[2].val))
    return {**found, f"bias{suffix}": first}


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("gates_in_order", _swapped),
        ("_weights", _halves_swapped),
        ("_weights", _one_bias),
        ("_as_torch", None),
    ],
)
@pytest.mark.parametrize("form", [pytest.param("float", marks=pytest.mark.slow), "int8"])
def test_a_wrong_lstm_is_caught(
    emit: Emit, part: str, wrong: Any, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last case, with nothing wrong, passes."""

    def change(graph: Graph) -> None:
        if form == "int8":
            for node in graph.calls(aten.lstm.input)[0].all_input_nodes:
                if str(node.target).startswith("lstm.weight"):
                    _store(graph, str(node.target), _int8)

    is_right = wrong is None
    if not is_right:
        monkeypatch.setattr(recurrent, part, wrong)
    emission = emit(Sequence(), torch.randn(5, 2, 4), change=change)
    assert emission.gate()["passed"] is is_right, emission.gate()


class Gelu(nn.Module):
    """GELU by tanh, for which coremltools' own converter takes the exact one."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh")


@pytest.fixture
def gelu_mode() -> Iterator[Callable[[str], None]]:
    """Give a function that lets GELU be converted in another mode, for one test."""
    from coremltools.converters.mil.frontend.torch.torch_op_registry import register_torch_op
    from coremltools.converters.mil.mil import Builder

    def register(function: Any) -> None:
        function.__name__ = "gelu"
        register_torch_op(function, override=True)

    def choose(mode: str) -> None:
        def converter(context: Any, node: Any) -> None:
            x = lowering.arguments(context, node)[0]
            context.add(Builder.gelu(x=x, mode=mode, name=node.name), node.name)

        register(converter)

    lowering.register()
    yield choose
    register(lowering._gelu)


@pytest.mark.parametrize("mode", ["TANH_APPROXIMATION", "EXACT", "SIGMOID_APPROXIMATION"])
def test_a_wrong_activation_is_caught(
    emit: Emit, mode: str, gelu_mode: Callable[[str], None]
) -> None:
    gelu_mode(mode)
    emission = emit(Gelu(), torch.randn(4, 40) * 2, float_bits=32)
    assert emission.gate()["passed"] is (mode == "TANH_APPROXIMATION")
