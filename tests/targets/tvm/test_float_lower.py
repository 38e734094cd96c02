"""From float layers to ops of float kernels: which, in which layout, with the same values."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import WEIGHT_DECODERS, aten
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db
from qcompile.targets.device import load_device
from qcompile.targets.options import WeightOptions
from qcompile.targets.order import Recipe
from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm import planning
from qcompile.targets.tvm.emitter import EMITTER
from qcompile.targets.tvm.float_lower import lower_floats

X86 = "x86-avx512-vnni"
DEVICE = load_device(X86)


class Net(nn.Module):
    """A small residual network with one of everything that has a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.point = nn.Conv2d(64, 64, 1)
        self.head = nn.Linear(64, 5)

    def forward(self, image: Tensor) -> Tensor:
        first = torch.relu(self.first(image))
        inner = functional.relu6(self.depthwise(first))
        total = functional.max_pool2d(first + functional.hardswish(self.point(inner)), 2)
        pooled = functional.adaptive_avg_pool2d(total, 1)
        found: Tensor = self.head(torch.flatten(pooled, 1))
        return found


class Apply(nn.Module):
    """A function of an image and two convolutions."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.function = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            function,
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.function(image, self.one, self.two)


def stable(text: str) -> str:
    """Drop digests: the last bits of rounded weights depend on the processor."""
    return re.sub(r" [0-9a-f]{8}$", "", text, flags=re.MULTILINE)


def images(size: int = 12) -> Tensor:
    """Return normal noise."""
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(3))


def made(module: nn.Module, precision: str = "fp32", dynamic: Any = None, **options: Any) -> Graph:
    """Return a module's graph after the passes for TVM."""
    graph = trace(module.eval(), (images(),), dynamic)
    run(graph, float_pipeline())
    scheme = EMITTER.scheme(precision, DEVICE, WeightOptions(**options))
    samples = Samples([{graph_input: images() for graph_input in graph.inputs}] * 2, 8, "test")
    run(graph, EMITTER.passes(Recipe(scheme, samples, QuantizationLog())))
    return graph


def lowered(graph: Graph) -> Graph:
    """Return the lowered graph; its outputs are those of the graph."""
    found = graph.copy()
    layers = lower_floats(found)
    names = {node.name for node in graph.nodes}
    assert layers.keys() <= names, "the error engine finds each layer in the graph"
    results = [g.run({"image": images()}).values() for g in (graph, found)]
    for one, other in zip(*results, strict=True):
        quality = sqnr_db([(one, other)])  # sums of float32 in another order: 120 dB and more
        assert quality is None or quality > 100
    return found


def targets(graph: Graph) -> Counter[Any]:
    """Return how often each op is called."""
    return Counter(n.target for n in graph.nodes if n.op == "call_function")


@pytest.mark.parametrize("precision", ["fp32", "w8a16", "int4"])
def test_a_net_of_float_layers(golden: Any, quarters: Any, precision: str) -> None:
    torch.manual_seed(0)
    graph = made(quarters(Net()), precision)
    found = lowered(graph)
    golden(f"tvm/float_lower_{precision}.txt", stable(found.to_text()))
    count = targets(found)
    assert count[ops.CONV] == 3
    assert (
        count[ops.ADD] == count[ops.MAX_POOL] == count[ops.GLOBAL_AVERAGE] == count[ops.LINEAR] == 1
    )
    assert count[aten.permute.default] == 1, "of the image"
    assert not {aten.relu.default, aten.clamp.default, *WEIGHT_DECODERS} & set(count)
    bits = [node.args[-3] for node in found.calls(ops.CONV, ops.LINEAR)]
    assert bits == [{"fp32": 32, "w8a16": 8, "int4": 4}[precision]] * 4
    assert planning.slow_floats(found) == []


def test_four_bit_codes_have_groups_where_these_divide() -> None:
    found = lowered(made(Net(), "int4"))
    scales = [found.constant(node.args[2]) for node in found.calls(ops.CONV, ops.LINEAR)]
    assert [tuple(s.shape) for s in scales if s is not None] == [(64,), (64,), (64, 2), (5, 2)]
    found = lowered(made(Net(), "int4", granularity="per-channel"))
    scales = [found.constant(node.args[2]) for node in found.calls(ops.CONV, ops.LINEAR)]
    assert [tuple(s.shape) for s in scales if s is not None] == [(64,), (64,), (64,), (5,)]


def test_one_scale_for_a_tensor() -> None:
    found = lowered(made(Net(), "w8a16", granularity="per-tensor"))
    (head,) = found.calls(ops.LINEAR)
    scale = found.constant(head.args[2])
    assert scale is not None
    assert (scale == scale[0]).all()


def test_the_batch_stays_free() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    found = lowered(made(Net(), "fp32", {"image": {0: batch}}))
    assert len(found.run({"image": images()[:3]})["output"]) == 3


@pytest.mark.parametrize(
    ("function", "permutes"),
    [
        (lambda x, f, g: g(functional.silu(f(x))), 2),
        (lambda x, f, g: g(f(x) * torch.sigmoid(functional.adaptive_avg_pool2d(f(x), 1))), 3),
        (lambda x, f, g: f(x) / 2 + functional.gelu(g(f(x)), approximate="tanh"), 2),
        (lambda x, f, g: torch.cat([f(x), g(f(x)), x], 1), 2),
        (lambda x, f, g: f(x) + torch.ones(1, 8, 1, 1), 2),
        (lambda x, f, g: f(x) + torch.ones(12, 12), 2),  # not four axes: as it was
        (lambda x, f, g: torch.cat([f(x), g(f(x))], 2), 2),
    ],
    ids=["silu", "gate", "sum", "cat", "constant", "matrix", "cat of rows"],
)
def test_channels_stay_last(function: Callable[..., Tensor], permutes: int) -> None:
    found = lowered(made(Apply(function)))
    assert targets(found)[aten.permute.default] <= permutes


def test_a_sum_takes_its_activation() -> None:
    found = lowered(made(Apply(lambda x, f, g: torch.relu(f(x) + g(f(x))))))
    (total,) = found.calls(ops.ADD)
    assert total.args[2:] == (0.0, math.inf)
    assert not found.calls(aten.relu.default)


def test_an_activation_that_others_read_too_stays() -> None:
    def two(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        first = f(x)
        return torch.relu(first) + g(first)

    found = lowered(made(Apply(two)))
    assert targets(found)[aten.relu.default] == 1


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (nn.Conv2d(8, 8, 3, groups=4), "groups that are not depthwise"),
        (nn.Conv2d(8, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(8, 16, 3, groups=8), "groups that are not depthwise"),
    ],
    ids=["grouped", "dilated", "depth multiplier"],
)
def test_other_convolutions_are_planned_as_slow(second: nn.Module, why: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), second

        def forward(self, image: Tensor) -> Tensor:
            found: Tensor = self.second(self.first(image))
            return found

    found = lowered(made(Two()))
    reason = f"{why}: {planning.UNTUNED}"
    assert planning.slow_floats(found) == [{"op": "conv2d", "count": 1, "why": reason}]
    graph = trace(Two().eval(), (images(),))
    run(graph, float_pipeline())
    rows = planning.plan(graph, EMITTER.scheme("fp32", DEVICE), DEVICE)
    slow = [(row.name, row.why) for row in rows if not row.fast]
    assert slow == [("second.weight", reason)]


def test_a_free_image_size_stays_with_tvm() -> None:
    size = torch.export.Dim("size", min=4, max=64)
    module = Apply(lambda x, f, g: torch.relu(f(x)).mean((2, 3)))
    found = lowered(made(module, "fp32", {"image": {2: size}}))
    assert not {ops.CONV, ops.GLOBAL_AVERAGE} & set(targets(found))
    assert planning.slow_floats(found)[0]["why"].startswith("the size of its image is free")


def test_lowering_twice_finds_nothing_more() -> None:
    graph = made(Net())
    lower_floats(graph)
    once = graph.to_text()
    assert lower_floats(graph) == {}
    assert graph.to_text() == once


def test_products_of_two_values_are_planned_as_slow() -> None:
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 12)

        def forward(self, image: Tensor) -> Tensor:
            rows = self.head(image)
            return functional.linear(rows[0, 0] @ rows[0, 1], rows[0, 2])

    graph = trace(Products().eval(), (images(),))
    run(graph, float_pipeline())
    rows = planning.plan(graph, EMITTER.scheme("fp32", DEVICE), DEVICE)
    slow = [row.op for row in rows if not row.fast]
    assert sorted(slow) == ["linear", "matmul"], "and not the layer with weights"
