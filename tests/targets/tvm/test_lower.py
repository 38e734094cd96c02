"""From quantize/dequantize pairs to ops on codes: which, in which layout, with the same codes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.interpret import ConstantReader
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE, aten
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db
from qcompile.targets.device import load_device
from qcompile.targets.forced import ForcedRun
from qcompile.targets.options import WeightOptions
from qcompile.targets.order import Recipe
from qcompile.targets.tvm import code_ops as ops
from qcompile.targets.tvm import planning
from qcompile.targets.tvm.codes import TO_FIRST
from qcompile.targets.tvm.emitter import EMITTER
from qcompile.targets.tvm.lower import lower

X86, ARM = "x86-avx512-vnni", "raspberry-pi-5"
DEVICES = pytest.mark.parametrize("device", [X86, ARM])


class Net(nn.Module):
    """A small residual network with one of everything that has a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.first(image))
        inner = functional.hardswish(self.depthwise(first))
        total = functional.max_pool2d(first + self.point(inner), 2)
        pooled = functional.adaptive_avg_pool2d(total, 1)
        found: Tensor = self.head(torch.flatten(pooled, 1))
        return found


class Apply(nn.Module):
    """A function of the images after one convolution."""

    def __init__(self, function: Callable[..., Tensor], second: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.second, self.function = nn.Conv2d(3, 8, 3, padding=1), second, function

    def forward(self, image: Tensor) -> Tensor:
        codes = self.conv(image)
        return self.function(codes, self.second) if self.second else self.function(codes)


def quantized(
    module: nn.Module, image: Tensor, device: str = X86, dynamic: Any = None, granularity: str = ""
) -> Graph:
    """Return a module's graph after the passes for TVM."""
    graph = trace(module.eval(), (image,), dynamic)
    run(graph, float_pipeline())
    options = WeightOptions(granularity=granularity) if granularity else WeightOptions()
    scheme = EMITTER.scheme("int8", load_device(device), options)
    samples = Samples([dict(zip(graph.inputs, (image,), strict=True))] * 2, 2 * len(image), "test")
    run(graph, EMITTER.passes(Recipe(scheme, samples, QuantizationLog())))
    return graph


def images(size: int = 12, batch: int = 4) -> Tensor:
    """Return normal noise."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def stable(text: str) -> str:
    """Drop digests, and all but two digits of scales: their last bits depend on the processor."""
    text = re.sub(r" [0-9a-f]{8}$", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.2g}", text)


def targets(graph: Graph) -> Counter[Any]:
    """Return how often each op is called."""
    return Counter(n.target for n in graph.nodes if n.op == "call_function")


class Recording(ConstantReader):
    """Keeps the value of every node by its name."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module, graph.weights)
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value


def check_codes(graph: Graph, lowered: Graph, image: Tensor, stored: dict[str, Any]) -> None:
    """Compare each op's codes with those of the quantized graph for the same inputs of the op."""
    recording = Recording(lowered)
    with torch.no_grad():
        outputs = recording.run(image)
        shown = {
            name: recording.values[s.node].permute(TO_FIRST)
            if s.is_last
            else recording.values[s.node]
            for name, s in stored.items()
        }
        sources = {node.args[0].name: node for node in graph.calls(QUANTIZE)}  # type: ignore[union-attr]
        assert shown
        forced = ForcedRun(graph, {sources[name]: codes for name, codes in shown.items()})
        expected = forced.run(image)
    assert len(forced.rows) == len(shown)
    for row in forced.rows:
        assert row["largest"] <= 1, row
        assert row["differing"] <= 1e-3, row
    for one, other in zip(expected, outputs, strict=True):
        quality = sqnr_db([(one, other)])
        assert quality is None or quality >= 60


def lowered_and_checked(graph: Graph, image: Tensor) -> Graph:
    """Return the lowered graph, its codes and outputs compared."""
    found = graph.copy()
    check_codes(graph, found, image, lower(found))
    return found


@DEVICES
def test_a_net_of_integer_ops(golden: Any, quarters: Any, device: str) -> None:
    graph = quantized(quarters(Net()), images(), device)
    found = lowered_and_checked(graph, images())
    golden(f"tvm/lower_{device}.txt", stable(found.to_text()))
    count = targets(found)
    assert count[ops.CONV] == 3
    assert count[ops.QUANTIZE_CHANNELS_LAST] == count[ops.ADD] == count[ops.TABLE] == 1
    assert count[ops.MAX_POOL] == count[ops.GLOBAL_AVERAGE] == count[ops.LINEAR] == 1
    assert not {QUANTIZE, DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, aten.permute.default} & set(count)
    assert planning.floats(found) == []


def test_random_weights_in_both_granularities() -> None:
    torch.manual_seed(1)
    for granularity in ("per-channel", "per-tensor"):
        graph = quantized(Net(), images(), granularity=granularity)
        lowered_and_checked(graph, images())


def test_the_batch_stays_free() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = quantized(Net(), images(), X86, {"image": {0: batch}})
    found = lowered_and_checked(graph, images(batch=7))
    assert targets(found)[ops.CONV] == 3
    (output,) = found.run({"image": images(batch=5)}).values()
    assert len(output) == 5


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), "groups that are not depthwise"),
        (nn.Conv2d(8, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(8, 16, 3, groups=8), "groups that are not depthwise"),
    ],
    ids=["grouped", "dilated", "depth multiplier"],
)
def test_other_convolutions_stay_float_and_are_listed(second: nn.Module, why: str) -> None:
    graph = quantized(Apply(lambda x, f: f(torch.relu(x)), second), images())
    found = lowered_and_checked(graph, images())
    assert targets(found)[ops.CONV] == 1
    assert {"op": "conv2d", "count": 1, "why": why} in planning.floats(found)


def test_a_free_image_size_stays_float() -> None:
    size = torch.export.Dim("size", min=4, max=64)
    module = Apply(lambda x: functional.relu(x).mean((2, 3)))
    graph = quantized(module, images(), X86, {"image": {2: size}})
    found = lowered_and_checked(graph, images())
    assert not {ops.CONV, ops.QUANTIZE_CHANNELS_LAST} & set(targets(found))
    rows = {row["op"]: row["why"] for row in planning.floats(found)}
    assert rows["conv2d"] == "the size of its image is free"


def test_a_recurrent_layer_stays_float_and_is_named() -> None:
    graph = trace(nn.LSTM(3, 4, batch_first=True).eval(), (torch.randn(2, 5, 3),))
    assert "lstm" in {row["op"] for row in planning.floats(graph)}


def test_cat_is_of_codes_channels_last() -> None:
    def both(x: Tensor, second: nn.Module) -> Tensor:
        left = functional.relu(x)
        found: Tensor = second(torch.cat([left, functional.hardswish(left)], 1))
        return found

    graph = quantized(Apply(both, nn.Conv2d(16, 4, 1)), images())
    found = lowered_and_checked(graph, images())
    (cat,) = found.calls(aten.cat.default)
    assert cat.args[1] == 3
    assert cat.meta["val"].dtype == torch.uint8
    assert targets(found)[ops.CONV] == 2
    assert targets(found)[ops.TABLE] >= 2, "the function, and codes in the format of both"


def test_a_pool_with_a_border_and_another_after_it() -> None:
    def pools(x: Tensor, second: nn.Module) -> Tensor:
        one = functional.max_pool2d(x, 3, 2, 1)
        found: Tensor = second(functional.max_pool2d(one, (2, 1), (1, 1)))
        return found

    graph = quantized(Apply(pools, nn.Conv2d(8, 4, 1)), images())
    found = lowered_and_checked(graph, images())
    assert targets(found)[ops.MAX_POOL] == 2


@pytest.mark.parametrize(
    "settings", [{"ceil_mode": True}, {"dilation": 2}], ids=["ceil_mode", "dilation"]
)
def test_other_pools_are_not_of_codes(settings: dict[str, Any]) -> None:
    def pool(x: Tensor, second: nn.Module) -> Tensor:
        found: Tensor = second(functional.max_pool2d(x, 2, **settings))
        return found

    graph = quantized(Apply(pool, nn.Conv2d(8, 4, 1)), images(11))
    found = lowered_and_checked(graph, images(11))
    assert not targets(found)[ops.MAX_POOL]
    assert [row["op"] for row in planning.floats(found)] == ["max_pool2d"]


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.flatten(1),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(1, 2),
        lambda x: x[:, 1:7:2],
        lambda x: x[:, :, 3],
        lambda x: x.reshape(-1, 4, 2, 12, 12),
    ],
    ids=["flatten", "permute", "transpose", "slice", "select", "reshape"],
)
def test_moves_are_of_codes(move: Callable[[Tensor], Tensor]) -> None:
    graph = quantized(Apply(lambda x: functional.hardswish(move(functional.relu(x)))), images())
    found = lowered_and_checked(graph, images())
    assert targets(found)[ops.TABLE] == 1
    assert planning.floats(found) == []


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, torch.tanh, functional.silu, functional.gelu, functional.hardsigmoid,
     lambda x: functional.leaky_relu(x, 0.2), lambda x: functional.elu(x, 0.5)],
    ids=["sigmoid", "tanh", "silu", "gelu", "hardsigmoid", "leaky_relu", "elu"],
)  # fmt: skip
@DEVICES
def test_functions_of_one_value_are_tables(
    function: Callable[[Tensor], Tensor], device: str
) -> None:
    graph = quantized(Apply(function), images(), device)
    found = lowered_and_checked(graph, images())
    (call,) = found.calls(ops.TABLE)
    table = found.constant(call.args[1])
    assert table is not None
    assert table.shape == (256,)
    assert table.dtype == (torch.int8 if device == ARM else torch.uint8)


def test_a_sum_with_broadcasting_stays_float() -> None:
    def add(x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(x, 1) + x

    found = lowered_and_checked(quantized(Apply(add), images()), images())
    assert not targets(found)[ops.ADD]
    assert {row["op"] for row in planning.floats(found)} >= {"add"}


def test_lowering_twice_finds_nothing_more() -> None:
    graph = quantized(Net(), images())
    lower(graph)
    once = graph.to_text()
    assert lower(graph) == {}
    assert graph.to_text() == once
