"""quantize: the IR it leaves, its records, and that no step is kept that does not help."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import CalibrationError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, LOOKUP, OBSERVE, QUANTIZE, aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec, WeightSpec, parse_weight_spec
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.fold_batch_norm import FoldBatchNorm
from qcompile.passes.quantization.fitting import fitting_spec
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.integer_ops import IntegerOps
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db

OPS = IntegerOps(
    layers=frozenset({aten.conv2d.default, aten.linear.default}),
    needs_output=frozenset({aten.conv2d.default}),
    arithmetic=frozenset({aten.add.Tensor}),
    products=frozenset(),
    moves=frozenset({aten.view.default, aten.flatten.using_ints}),
    unit_range=frozenset({aten.sigmoid.default}),
)
UINT8 = QuantSpec(signed=False, symmetric=False)
INT8 = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


class Residual(nn.Module):
    """Convolution, batch norm, ReLU, a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.first(x)))
        z: Tensor = self.head(torch.relu(self.second(y) + y).flatten(1))
        return z


def inputs(count: int = 8) -> Samples:
    generator = torch.Generator().manual_seed(1)
    batches = [{"x": torch.randn(8, 2, 4, 4, generator=generator)} for _ in range(count)]
    return Samples(batches, 8 * count, "random")


def quantized(
    module: nn.Module,
    weight: WeightSpec = INT8,
    samples: Samples | None = None,
    rounding: str = "gptq",
    activation: QuantSpec | None = UINT8,
    **options: object,
) -> tuple[Graph, QuantizationLog]:
    samples = samples or inputs()
    graph, log = trace(module.eval(), dict(samples.batches[0])), QuantizationLog()
    quantize = Quantize(samples, log, rounding, unit_range=OPS.unit_range, **options)  # type: ignore[arg-type]
    run(graph, [FoldBatchNorm(), InsertObservers(OPS, activation, weight), quantize])
    return graph, log


def stable(text: str) -> str:
    """Drop digests, and all but two digits of scales: their last bits depend on the processor."""
    text = re.sub(r" [0-9a-f]{8}$", "", text, flags=re.MULTILINE)
    return re.sub(r"\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.2g}", text)


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
def test_stays_close_to_the_float_graph(rounding: str) -> None:
    module, samples = Residual(), inputs()
    graph, _ = quantized(module, samples=samples, rounding=rounding)
    assert not graph.calls(OBSERVE)
    pairs = [(module(b["x"]).detach(), graph.run(b)["output"]) for b in inputs(10).batches[8:]]
    assert (quality := sqnr_db(pairs)) is not None
    assert quality > 32


def test_records_every_layer_and_activation() -> None:
    graph, log = quantized(Residual(), rounding="adaround")
    assert [r.name for r in log.layers] == ["first.weight", "second.weight", "head.weight"]
    for row in log.layers:
        assert set(row.tried) == {"gptq", "gptaq", "adaround"}
        best = min({"nearest": 1.0, **row.tried}.items(), key=lambda item: item[1])
        assert row.tried.get(row.rounding, 1.0) == best[1]
        assert row.weight == "int8 sym per_channel(0)"
        assert row.weight_sqnr_db is not None
        assert row.output_sqnr_db is not None
        assert row.weight_sqnr_db > row.output_sqnr_db
        assert row.note == ""
    assert log.layers[0].parameters == 72
    assert log.layers[0].bytes == 72 + 4 * 4
    assert len(log.activations) == len(graph.calls(QUANTIZE))
    for activation, node in zip(log.activations, graph.calls(QUANTIZE), strict=True):
        assert (activation.scale, activation.zero_point) == node.args[1:3]
        assert activation.format == "uint8 asym per_tensor"
    moved = next(a for a in log.activations if a.name == "view")
    assert moved.observer == "shared"
    assert log.as_json()["layers"][0]["name"] == "first.weight"


def test_unit_range_is_known_without_data() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return self.layer(torch.sigmoid(x * 0.01))

    _, log = quantized(Gate())
    (row,) = [a for a in log.activations if a.observer == "fixed"]
    assert row.scale == pytest.approx(1 / 255)
    assert row.zero_point == 0


@pytest.mark.parametrize("has_bias", [True, False])
def test_bias_takes_over_the_mean_of_the_error(has_bias: bool) -> None:
    """Inputs that are positive: the error of a coarse weight has a mean."""
    spec = QuantSpec(bits=3, granularity=Granularity.PER_CHANNEL, axis=0)
    samples = Samples([{"input": torch.rand(16, 6) + 2} for _ in range(8)], 128, "random")
    module = nn.Linear(6, 3, bias=has_bias)
    graph, log = quantized(module, spec, samples, "nearest", min_layer_sqnr_db=0.0)
    assert log.layers[0].bias_corrected
    assert graph.weights["bias"].shape == (3,)
    assert not has_bias or not torch.equal(graph.weights["bias"], module.bias)
    difference = [module(b["input"]).detach() - graph.run(b)["output"] for b in samples]
    assert float(torch.cat(difference).mean(0).abs().max()) < 0.02


def test_bias_stays_where_correcting_it_does_not_help() -> None:
    """The mean that the fitted batches show is the opposite of what the held-out ones have."""
    spec = QuantSpec(bits=3, granularity=Granularity.PER_CHANNEL, axis=0)
    signs = [-1.0 if i % 4 == 3 else 1.0 for i in range(8)]
    samples = Samples([{"input": (torch.rand(16, 6) + 2) * s} for s in signs], 128, "random")
    module = nn.Linear(6, 3)
    graph, log = quantized(module, spec, samples, "nearest", min_layer_sqnr_db=0.0)
    assert not log.layers[0].bias_corrected
    assert torch.equal(graph.weights["bias"], module.bias)


def test_a_layer_that_hurts_stays_float() -> None:
    module = Residual()
    spec = QuantSpec(bits=2, granularity=Granularity.PER_CHANNEL, axis=0)
    graph, log = quantized(module, spec, min_layer_sqnr_db=60.0)
    for row in log.layers:
        assert (row.weight, row.rounding, row.bytes) == ("fp32", "", 4 * row.parameters)
        reason = r"stays float: in int2 .* its output keeps -?\d+\.\d dB, less than 60 dB"
        assert re.fullmatch(reason, row.note)
    assert torch.equal(graph.weights["head.weight"], module.head.weight)
    assert not any(name.endswith("_codes") for name in graph.weights)


def test_no_samples_are_an_error() -> None:
    graph = trace(Residual().eval(), torch.randn(2, 2, 4, 4))
    with pytest.raises(CalibrationError, match="no calibration samples"):
        run(graph, [Quantize(Samples([], 0, "nothing"), QuantizationLog())])


def test_one_batch_is_enough() -> None:
    _, log = quantized(Residual(), samples=inputs(1))
    assert all(row.rounding for row in log.layers)


def test_the_same_twice_whatever_the_memory() -> None:
    module = Residual()
    first, log = quantized(module)
    second, again = quantized(module)
    spilled, _ = quantized(module, max_bytes=0)
    assert first.to_text() == second.to_text() == spilled.to_text()
    assert log == again


def test_range_before_a_hidden_add_may_clip() -> None:
    """What the ReLU after the add hides costs nothing: the low side is given up."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.shortcut = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 1)
            self.after = nn.Conv2d(4, 2, 1)
            with torch.no_grad():
                self.layer.weight.mul_(4)
                self.layer.bias = nn.Parameter(torch.full((4,), -8.0))

        def forward(self, x: Tensor) -> Any:
            y = torch.relu(self.shortcut(x))
            return self.after(torch.relu(self.layer(x) + y))

    _, log = quantized(Block())
    row = next(a for a in log.activations if a.observer == "search")
    plain = next(a for a in log.activations if a.name == "x")
    assert row.sqnr_db is not None
    assert plain.observer != "search"
    assert -row.scale * row.zero_point > -6  # of values down to about -20


def decoded(graph: Graph, node: Any) -> Any:
    """Return what a node computes from constants."""
    if not isinstance(node, fx.Node):
        return node
    if (constant := graph.constant(node)) is not None:
        return constant
    assert callable(node.target)
    return node.target(*[decoded(graph, argument) for argument in node.args])


DECODED = {
    "int8 sym per_channel(0) fp16-scale": "quantize_int8_fp16.txt",
    "uint4 asym per_group(1,2) fp16-scale": "quantize_uint4_blocks.txt",
    "palette3 fp16 per_channels(2)": "quantize_palette.txt",
    "palette4 int8 per_tensor channel-scale": "quantize_palette_int8.txt",
}


@pytest.mark.parametrize(("text", "file"), [(str(INT8), "quantize.txt"), *DECODED.items()])
def test_golden(
    golden: Callable[[str, str], None],
    quarters: Callable[[nn.Module], nn.Module],
    text: str,
    file: str,
) -> None:
    activation = None if text in DECODED else UINT8
    graph, _ = quantized(quarters(Residual()), parse_weight_spec(text), activation=activation)
    golden(file, stable(graph.to_text()))


@pytest.mark.parametrize("rounding", ["nearest", "gptq", "adaround"])
@pytest.mark.parametrize(
    "text", [*DECODED, "int4 full per_group(1,2)", "int8 sym per_tensor fp16-scale"]
)
def test_decoded_weights_stay_close(text: str, rounding: str) -> None:
    module, samples = Residual(), inputs()
    spec = parse_weight_spec(text)
    graph, log = quantized(module, spec, samples, rounding, activation=None)
    shapes = {n: tuple(p.shape) for n, p in module.named_parameters()}
    fitted = [fitting_spec(spec, shapes[row.name])[0] for row in log.layers]
    assert [row.weight for row in log.layers] == [str(f) for f in fitted]
    assert [row.bytes for row in log.layers] == [
        f.storage_bytes(shapes[row.name]) for f, row in zip(fitted, log.layers, strict=True)
    ]
    for node in graph.calls(DEQUANTIZE_BLOCKWISE, LOOKUP):
        value = decoded(graph, node)
        assert torch.equal(value, value.half().float()) == (not text.endswith("per_group(1,2)"))
    pairs = [(module(b["x"]).detach(), graph.run(b)["output"]) for b in inputs(10).batches[8:]]
    assert (quality := sqnr_db(pairs)) is not None
    assert quality > (30 if "int8 sym" in text else 8)


def test_error_feedback_pays_for_palettes_too() -> None:
    spec = parse_weight_spec("palette2 fp16 per_tensor")
    _, log = quantized(Residual(), spec, activation=None, min_layer_sqnr_db=0.0)
    for row in log.layers:
        assert {"gptq", "gptaq"} < set(row.tried)
        assert any(method.endswith("+refit") for method in row.tried)
        assert row.tried[row.rounding] == min(row.tried.values()) < 1
    assert log.layers[1].tried[log.layers[1].rounding] < 0.9


def test_a_weight_that_needs_more_bits_gets_them() -> None:
    spec = parse_weight_spec("palette1 fp16 per_tensor")
    graph, log = quantized(Residual(), spec, activation=None, min_layer_sqnr_db=30.0)
    for row in log.layers:
        assert row.weight == "int8 sym per_channel(0) fp16-scale"
        reason = r"in palette1 fp16 per_tensor its output keeps -?\d+\.\d dB, less than 30 dB; int8"
        assert re.fullmatch(reason, row.note)
    assert len(graph.calls(DEQUANTIZE_BLOCKWISE)) == 3


def test_a_weight_without_a_format_stays_half() -> None:
    spec = parse_weight_spec("palette8 fp16 per_tensor")
    _, log = quantized(Residual(), spec, activation=None)
    for row in log.layers:
        assert (row.weight, row.bytes) == ("fp16", 2 * row.parameters)
        assert row.note == "stays float: palette8 fp16 per_tensor would take no less than fp16"


def test_unlike_what_was_asked_for_is_noted() -> None:
    spec = parse_weight_spec("uint4 asym per_group(1,3) fp16-scale")
    _, log = quantized(Residual(), spec, activation=None)
    first, second, head = log.layers
    assert first.weight == "uint4 asym per_channel(0) fp16-scale"
    assert first.note == "groups of 3 do not divide 2: a scale a channel"
    assert second.weight == "uint4 asym per_group(1,2) fp16-scale"
    assert second.note == "groups of 3 do not divide 4: groups of 2"
    assert head.weight == "uint4 asym per_channel(0) fp16-scale"
