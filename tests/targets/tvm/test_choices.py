"""What each weight of a library may be, and how many bytes kernels read of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import WeightFormat
from qcompile.passes import base
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.device import load_device
from qcompile.targets.order import Recipe
from qcompile.targets.plans import TensorChoices
from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm.choices import CODE_BYTES
from qcompile.targets.tvm.emitter import EMITTER
from qcompile.targets.tvm.float_layers import FloatLayer
from qcompile.targets.tvm.float_lower import lower_floats
from qcompile.targets.tvm.machine import Machine

DEVICES = ("raspberry-pi-5", "x86-avx2", "x86-avx512-vnni")


class Network(nn.Module):
    """Layers with kernels, and without: dilation, groups, one axis, a table, an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 40, 3, padding=1)
        self.deep = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.grouped = nn.Conv2d(40, 40, 3, padding=1, groups=4)
        self.spread = nn.Conv2d(40, 40, 3, padding=2, dilation=2)
        self.point = nn.Conv2d(40, 96, 1, bias=False)
        self.line = nn.Conv1d(96, 96, 3)
        self.steps = nn.LSTM(96, 32, batch_first=True)
        self.table = nn.Embedding(64, 32)
        self.twice = nn.Linear(32, 32)
        self.last = nn.Linear(32, 50)

    def forward(self, image: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.deep(self.first(image)))
        x = self.line(self.point(self.spread(x)).flatten(2)).transpose(1, 2)
        x = self.steps(x)[0] + self.table(ids)
        return self.last(self.twice(torch.relu(self.twice(x))))


@pytest.fixture(scope="module")
def graph() -> Graph:
    given = (torch.zeros(2, 3, 6, 6), torch.zeros(2, 1, dtype=torch.int64))
    found = trace(Network().eval(), given)
    base.run(found, float_pipeline())
    return found


def kinds(choice: TensorChoices) -> list[str]:
    return [format.name for format in choice.formats]


def test_what_no_kernel_decodes_stays_float(graph: Graph) -> None:
    found = {c.name: kinds(c) for c in EMITTER.weight_choices(graph, load_device(DEVICES[0]))}

    assert found["first.weight"] == ["int8", "int4", "fp32"]  # three channels are one group
    assert found["point.weight"] == ["int8", "int4", "int4-per-channel", "fp32"]
    assert found["table.weight"] == ["int8", "fp32"]
    for name in ("grouped", "spread", "line", "twice"):
        assert found[f"{name}.weight"] == ["fp32"], name
    assert all(v == ["fp32"] for n, v in found.items() if n.startswith("steps."))


@pytest.mark.parametrize("device", DEVICES)
def test_bytes_are_those_of_the_constants_of_kernels(graph: Graph, device: str) -> None:
    """Each layer, packed for the device's registers; biases, which no format changes, left out."""
    facts = load_device(device)
    vectors = Machine.of(facts).vectors
    assert vectors is not None
    for kind in ("int8", "int4", "int4-per-channel", "fp32"):
        sizes, formats = {}, {}
        for choice in EMITTER.weight_choices(graph, facts):
            place = kinds(choice).index(kind) if kind in kinds(choice) else -1
            chosen = choice.formats[place]
            assert isinstance(chosen, WeightFormat)
            formats[choice.name], sizes[choice.name] = chosen.spec, choice.bytes[place]
        own = graph.copy()
        samples = Samples(
            [{"image": torch.randn(2, 3, 6, 6), "ids": torch.zeros(2, 1).long()}], 2, ""
        )
        scheme = EMITTER.mixed_scheme(facts)
        recipe = Recipe(scheme, samples, QuantizationLog(), "nearest", formats=formats)
        base.run(own, EMITTER.passes(recipe))
        lower_floats(own)
        layers = own.calls(ops.CONV, ops.LINEAR)
        assert len(layers) == 6
        for node in layers:
            name = str(node.args[1].target).removesuffix("_codes")  # type: ignore[union-attr]
            layer = FloatLayer.of(node, lambda n, own=own: own.weights[str(n.target)])  # type: ignore[misc]
            *stored, _ = layer.constants(vectors)
            code = CODE_BYTES.get(formats[name].bits, 0)
            assert sum(v.nbytes for v in stored) + code == sizes[name], (kind, name)
            assert stored[0].dtype == (np.float32 if formats[name].bits == 32 else np.int8)


def test_pins(graph: Graph) -> None:
    device = load_device(DEVICES[0])
    pinned = EMITTER.weight_choices(graph, device, [("first", "int4")], frozenset({"deep.weight"}))

    assert kinds(pinned[0]) == ["int4"]
    assert kinds(pinned[1]) == ["fp32"]
    with pytest.raises(TargetError, match=r"spread\.weight can be fp32, not int8"):
        EMITTER.weight_choices(graph, device, [("spread", "int8")])


def test_a_gpu_is_refused(graph: Graph) -> None:
    with pytest.raises(TargetError, match="cuda-sm80 computes on its GPU"):
        EMITTER.weight_choices(graph, load_device("cuda-sm80"))
