"""The visitor of the walk that quantizes: activations at observers, weights at layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import (
    DEQUANTIZE,
    DEQUANTIZE_PER_CHANNEL,
    OBSERVE,
    QUANTIZE,
    aten,
)
from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec
from qcompile.passes.calibration.observers import Choice, choose, histogram
from qcompile.passes.calibration.walk import Batches, Values, Walk
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.adaround import adaround
from qcompile.passes.quantization.error_after_add import error_after_add
from qcompile.passes.quantization.gptq import gptaq, gptq, moments
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.records import (
    ActivationRecord,
    LayerRecord,
    QuantizationLog,
    sqnr_db,
)
from qcompile.passes.quantization.rounding import Rounded, round_to_nearest


SOFTMAX_REACH = 16.0
"""exp(-16) is a ten-millionth: what lies further below its row's largest value is 0 to a softmax."""


@dataclass(frozen=True)
class _Trial:
    """One rounding with its bias and its output error on held-out samples."""

    rounded: Rounded
    bias: Tensor | None
    error: float
    shifted: bool


def held_out(count: int) -> list[int]:
    """Return the batches that judge: every fourth, or the only one."""
    return list(range(3, count, 4)) or [count - 1]


def fitted(count: int) -> list[int]:
    """Return the batches that are fitted to: the others."""
    judges = set(held_out(count))
    return [i for i in range(count) if i not in judges] or [0]


@dataclass
class Quantizer:
    """Quantizes what is observed; see ``Quantize`` for the options."""

    log: QuantizationLog
    rounding: str
    unit_range: frozenset[object]
    min_layer_sqnr_db: float
    params: dict[str, QuantParams] = field(default_factory=dict)

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Take over observers and layers with an observed weight."""
        if node.target == OBSERVE:
            return self._observer(walk, node)
        if node.target in LAYERS and _weight_observer(node) is not None:
            return self._layer(walk, node)
        return None

    def _observer(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        source, text, _ = node.args
        assert isinstance(source, fx.Node)
        if source.op == "get_attr" and all(_weight_observer(u) is node for u in node.users):
            return None if walk.constant(source) and False else (node, Values((), ()))
        spec = QuantSpec.parse(str(text))
        if source.op == "get_attr":
            return self._constant(walk, node, source, spec)
        values = walk.values[source]
        params, observer = self._choose(walk, node, values, spec)
        self.params[node.name] = params
        graph, scale, zero = walk.graph, float(params.scale), int(params.zero_point)
        code_range = (scale, zero, spec.qmin, spec.qmax, spec.dtype)
        with graph.before(node):
            q = graph.add_call(QUANTIZE, source, *code_range, name=f"{source.name}_q")
            d = graph.add_call(DEQUANTIZE, q, *code_range, name=f"{source.name}_dq")
        self.params[d.name] = params
        graph.replace(node, d)

        def run(index: int) -> Tensor:
            return DEQUANTIZE(QUANTIZE(values.quantized[index], *code_range), *code_range)  # type: ignore[no-any-return]

        found = Values(values.float, walk.batches(run))
        judges = held_out(len(walk.samples))
        quality = sqnr_db((found.float[i], found.quantized[i]) for i in judges)
        record = ActivationRecord(source.name, str(spec), observer, scale, zero, quality)
        self.log.activations.append(record)
        return d, found

    def _constant(
        self, walk: Walk, node: fx.Node, source: fx.Node, spec: QuantSpec
    ) -> tuple[fx.Node, Values]:
        value = walk.graph.constant(source)
        assert value is not None
        params = spec.min_max(value)
        scale, zero = float(params.scale), int(params.zero_point)
        with walk.graph.before(node):
            codes = walk.graph.add_constant(f"{source.target}_codes", spec.encode(value, params))
            d = walk.graph.add_call(
                DEQUANTIZE, codes, scale, zero, spec.qmin, spec.qmax, spec.dtype
            )
        walk.graph.replace(node, d)
        found = walk.batches(lambda i: value)
        decoded = walk.batches(lambda i: spec.decode(spec.encode(value, params), params))
        return d, Values(found, decoded)

    def _choose(
        self, walk: Walk, node: fx.Node, values: Values, spec: QuantSpec
    ) -> tuple[QuantParams, str]:
        source, _, shares = node.args
        assert isinstance(source, fx.Node)
        if shares and (known := self._shared(walk, source)) is not None:
            return known, "shared"
        if source.target in self.unit_range:
            return spec.params(torch.tensor(0.0), torch.tensor(1.0)), "fixed"
        measure = error_after_add(walk, node, spec, fitted(len(values.quantized)))
        choice: Choice = choose(histogram(_relevant(source, values.quantized)), spec, measure)
        return choice.params, choice.observer

    def _shared(self, walk: Walk, source: fx.Node) -> QuantParams | None:
        origin = source.args[0]
        return self.params.get(origin.name) if isinstance(origin, fx.Node) else None

    def _layer(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values]:
        observer = _weight_observer(node)
        assert observer is not None
        weight_node, text, _ = observer.args
        assert isinstance(weight_node, fx.Node)
        graph, spec = walk.graph, QuantSpec.parse(str(text))
        weight = graph.constant(weight_node)
        assert weight is not None
        bias = graph.constant(node.args[2]) if len(node.args) > 2 else None
        layer = Layer(node, str(weight_node.target), weight, bias)
        source = node.args[0]
        assert isinstance(source, fx.Node)
        inputs = walk.values[source]
        reference = walk.batches(lambda i: layer(inputs.float[i], weight, bias))
        record = LayerRecord(
            layer.name,
            str(node.target).split(".")[1],
            str(spec),
            weight.numel(),
            spec.storage_bytes(tuple(weight.shape)),
        )
        rounded, bias = self._round(layer, spec, inputs, reference, record)
        self.log.layers.append(record)
        if record.weight_sqnr_db is not None and record.weight_sqnr_db < self.min_layer_sqnr_db:
            return self._keep_float(walk, layer, observer, weight_node, inputs, reference, record)
        dequantize = _store(graph, observer, weight_node, rounded, spec)
        decoded = _decode(rounded, spec)
        if bias is not layer.bias:
            assert bias is not None
            _set_bias(graph, layer, bias)
        outputs = walk.batches(lambda i: layer(inputs.quantized[i], decoded, bias))
        judges = held_out(len(walk.samples))
        record.output_sqnr_db = sqnr_db((reference[i], outputs[i]) for i in judges)
        assert dequantize.op == "call_function"
        return node, Values(reference, outputs)

    def _round(
        self,
        layer: Layer,
        spec: QuantSpec,
        inputs: Values,
        reference: Sequence[Tensor],
        record: LayerRecord,
    ) -> tuple[Rounded, Tensor | None]:
        """Return the best rounding and its bias, judged by the output on held-out samples."""
        count = len(inputs.quantized)
        fit, judges = fitted(count), held_out(count)
        importance = layer.importance([inputs.quantized[i] for i in fit])
        candidates = [round_to_nearest(layer.weight, spec, importance)]
        if self.rounding != "nearest":
            seen = moments(layer, [(inputs.float[i], inputs.quantized[i]) for i in fit])
            candidates += [f(layer, spec, candidates[0].params, seen) for f in (gptq, gptaq)]
        trials = [self._trial(layer, c, spec, inputs, reference) for c in candidates]
        if self.rounding == "adaround":
            moved = trials[2].error < trials[1].error
            learned = adaround(layer, spec, candidates[0].params, seen, moved=moved)
            trials.append(self._trial(layer, learned, spec, inputs, reference))
        best = min(trials, key=lambda t: t.error)
        base = trials[0].error or 1e-30
        record.rounding, record.bias_corrected = best.rounded.method, best.shifted
        record.tried = {t.rounded.method: round(t.error / base, 4) for t in trials[1:]}
        record.weight_sqnr_db = self._weight_sqnr(layer, best.rounded, spec, inputs, judges)
        return best.rounded, best.bias

    def _trial(
        self, layer: Layer, rounded: Rounded, spec: QuantSpec, inputs: Values, reference: Sequence[Tensor]
    ) -> _Trial:
        """Return the error of a rounding with the bias that suits it."""
        decoded = _decode(rounded, spec)
        count = len(reference)

        def difference(i: int) -> Tensor:
            return reference[i] - layer(inputs.quantized[i], decoded, layer.bias)  # type: ignore[no-any-return]

        shift = torch.stack([layer.channel_means(difference(i)) for i in fitted(count)]).mean(0).float()
        plain = corrected = 0.0
        for i in held_out(count):
            left = difference(i)
            plain += float(left.square().sum())
            corrected += float((left - layer.per_channel(shift)).square().sum())
        if corrected >= plain:
            return _Trial(rounded, layer.bias, plain, False)
        bias = shift if layer.bias is None else layer.bias + shift
        return _Trial(rounded, bias, corrected, True)

    def _weight_sqnr(
        self, layer: Layer, rounded: Rounded, spec: QuantSpec, inputs: Values, judges: list[int]
    ) -> float | None:
        decoded = _decode(rounded, spec)
        return sqnr_db(
            (layer(x, layer.weight, None), layer(x, decoded, None))
            for x in (inputs.quantized[i] for i in judges)
        )

    def _keep_float(
        self,
        walk: Walk,
        layer: Layer,
        observer: fx.Node,
        weight_node: fx.Node,
        inputs: Values,
        reference: Batches,
        record: LayerRecord,
    ) -> tuple[fx.Node, Values]:
        walk.graph.replace(observer, weight_node)
        record.note = (
            f"stays float: in {record.weight} its output keeps {record.weight_sqnr_db:.1f} dB, "
            f"less than {self.min_layer_sqnr_db:g} dB"
        )
        record.weight, record.rounding = "fp32", ""
        record.bytes = 4 * record.parameters
        outputs = walk.batches(lambda i: layer(inputs.quantized[i], layer.weight, layer.bias))
        return layer.node, Values(reference, outputs)


def _relevant(source: fx.Node, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the values whose codes matter: before a softmax, those within reach of their row's largest.

    A mask adds -1e4 or less; a range that held it would leave one code for all other values.
    """
    users = [u for user in source.users for u in (user.users if user.target == OBSERVE else [user])]
    if not users or any(u.target != aten.softmax.int for u in users):
        return batches
    dim = int(users[0].args[1])  # type: ignore[arg-type]
    return [b[b >= b.amax(dim, keepdim=True) - SOFTMAX_REACH] for b in batches]


def _weight_observer(node: fx.Node) -> fx.Node | None:
    weight = node.args[1] if node.target in LAYERS else None
    return weight if isinstance(weight, fx.Node) and weight.target == OBSERVE else None


def _decode(rounded: Rounded, spec: QuantSpec) -> Tensor:
    return spec.decode(rounded.codes, rounded.params)


def _store(
    graph: Graph, observer: fx.Node, weight: fx.Node, rounded: Rounded, spec: QuantSpec
) -> fx.Node:
    name = str(weight.target)
    with graph.before(observer):
        codes = graph.add_constant(f"{name}_codes", rounded.codes)
        if spec.granularity is Granularity.PER_TENSOR:
            scale = float(rounded.params.scale)
            args = (codes, scale, 0, spec.qmin, spec.qmax, spec.dtype)
            new = graph.add_call(DEQUANTIZE, *args)
        else:
            flat = rounded.params.scale.flatten()
            scales = graph.add_constant(f"{name}_scale", flat)
            zeros = graph.add_constant(f"{name}_zero_point", torch.zeros(len(flat), dtype=torch.int64))
            args = (codes, scales, zeros, spec.axis, spec.qmin, spec.qmax, spec.dtype)  # type: ignore[assignment]
            new = graph.add_call(DEQUANTIZE_PER_CHANNEL, *args)
    graph.replace(observer, new)
    return new


def _set_bias(graph: Graph, layer: Layer, bias: Tensor) -> None:
    node = layer.node
    current = node.args[2] if len(node.args) > 2 else None
    if isinstance(current, fx.Node) and len(current.users) == 1:
        graph.set_constant(current, bias)
        return
    with graph.before(node):
        new = graph.add_constant(layer.name.removesuffix("weight") + "bias", bias)
    args = list(node.args) + [None] * max(0, 3 - len(node.args))
    args[2] = new
    node.args = tuple(args)
