"""The visitor of the walk that quantizes: activations at observers, weights at layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.ops import DEQUANTIZE, OBSERVE, QUANTIZE, aten
from qcompile.compiler.ir.quant import QuantParams, QuantSpec, parse_weight_spec
from qcompile.passes.calibration.observers import choose, histogram
from qcompile.passes.calibration.walk import Values, Walk
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.decisions import (
    Decision,
    RangeDecision,
    WeightDecision,
    weight_observer,
)
from qcompile.passes.quantization.error_after_add import ELEMENTS, error_after_add
from qcompile.passes.quantization.fitting import formats, unfit
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.records import (
    ActivationRecord,
    LayerRecord,
    QuantizationLog,
    sqnr_db,
)
from qcompile.passes.quantization.store import code_range, store_constant
from qcompile.passes.quantization.trials import LayerData, Trial, best_trial, fitted, held_out

SOFTMAX_REACH = 16.0
"""exp(-16) is a ten-millionth: what lies further below its row's largest value is 0 to a softmax."""


@dataclass
class Quantizer:
    """Quantizes what is observed; see ``Quantize`` for the options."""

    log: QuantizationLog
    rounding: str
    unit_range: frozenset[object]
    min_layer_sqnr_db: float
    elements: int = ELEMENTS
    params: dict[str, tuple[QuantSpec, QuantParams]] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)

    def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
        """Take over observers and layers with an observed weight."""
        if node.target == OBSERVE:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            if source.op != "get_attr":
                return self._activation(walk, node, source)
            if all(weight_observer(user) is node for user in node.users):
                return node, Values((), ())  # its layer rounds it
            return self._constant(walk, node, source)
        if node.target in LAYERS and (observer := weight_observer(node)) is not None:
            return self._layer(walk, node, observer)
        return None

    def _activation(self, walk: Walk, node: fx.Node, source: fx.Node) -> tuple[fx.Node, Values]:
        values = walk.values[source]
        spec = without_unused_sign(QuantSpec.parse(str(node.args[1])), values.quantized)
        spec, params, observer = self._choose(walk, node, source, values, spec)
        scale, zero = float(params.scale), int(params.zero_point)
        record = ActivationRecord(source.name, str(spec), observer, scale, zero, None)
        self.decisions[node.name] = decision = RangeDecision(spec, params, record)
        self.log.activations.append(record)
        new = decision.apply(walk.graph, node)
        self.params[node.name] = self.params[new.name] = (spec, params)
        arguments = code_range(spec, params)

        def run(index: int) -> Tensor:
            codes = QUANTIZE(values.quantized[index], *arguments)
            return DEQUANTIZE(codes, *arguments)  # type: ignore[no-any-return]

        found = Values(values.float, walk.batches(run))
        judges = held_out(len(walk.samples))
        record.sqnr_db = sqnr_db((found.float[i], found.quantized[i]) for i in judges)
        return new, found

    def _constant(self, walk: Walk, node: fx.Node, source: fx.Node) -> tuple[fx.Node, Values]:
        spec, value = QuantSpec.parse(str(node.args[1])), walk.graph.constant(source)
        assert value is not None
        params = spec.min_max(value)
        new = store_constant(walk.graph, node, spec, params)
        decoded = DEQUANTIZE(spec.encode(value, params), *code_range(spec, params))
        count = len(walk.samples)
        return new, Values([value] * count, [decoded] * count)

    def _choose(
        self, walk: Walk, node: fx.Node, source: fx.Node, values: Values, spec: QuantSpec
    ) -> tuple[QuantSpec, QuantParams, str]:
        origin = source.args[0] if source.args else None
        if node.args[2] and isinstance(origin, fx.Node) and origin.name in self.params:
            return *self.params[origin.name], "shared"
        if source.target in self.unit_range:
            return spec, spec.params(torch.tensor(0.0), torch.tensor(1.0)), "fixed"
        batches = fitted(len(values.quantized))
        measure = error_after_add(walk, node, spec, batches, self.elements)
        choice = choose(histogram(relevant(source, values.quantized)), spec, measure)
        return spec, choice.params, choice.observer

    def _layer(self, walk: Walk, node: fx.Node, observer: fx.Node) -> tuple[fx.Node, Values]:
        weight_node, source, spec = observer.args[0], node.args[0], str(observer.args[1])
        assert isinstance(weight_node, fx.Node)
        assert isinstance(source, fx.Node)
        weight = walk.graph.constant(weight_node)
        assert weight is not None
        bias = walk.graph.constant(node.args[2]) if len(node.args) > 2 else None
        layer, inputs = Layer(node, str(weight_node.target), weight, bias), walk.values[source]
        reference = walk.batches(lambda i: layer(inputs.float[i], weight, bias))
        data = LayerData(layer, parse_weight_spec(spec), inputs, reference)
        record = _record(data)
        self.log.layers.append(record)
        best = self._best(data, record)
        new_weight, new_bias = (weight, bias) if best is None else (best.rounded.decoded, best.bias)
        moved = best.bias if best is not None and best.shifted else None
        self.decisions[node.name] = decision = WeightDecision(
            None if best is None else best.rounded, moved, record
        )
        decision.apply(walk.graph, layer, observer)
        outputs = walk.batches(lambda i: layer(inputs.quantized[i], new_weight, new_bias))
        record.output_sqnr_db = sqnr_db((reference[i], outputs[i]) for i in data.judges)
        return node, Values(reference, outputs)

    def _best(self, data: LayerData, record: LayerRecord) -> Trial | None:
        """Return the weight in the first format that leaves it good enough; ``None``: it stays float."""
        shape = tuple(data.layer.weight.shape)
        failed = ""
        for spec, note in formats(data.spec, shape):
            record.add_note(failed)
            record.add_note(note)
            record.weight, record.bytes = str(spec), spec.storage_bytes(shape)
            best = best_trial(replace(data, spec=spec), self.rounding, record)
            quality = record.weight_sqnr_db
            if quality is None or quality >= self.min_layer_sqnr_db:
                return best
            failed = (
                f"in {spec} its output keeps {quality:.1f} dB, "
                f"less than {self.min_layer_sqnr_db:g} dB"
            )
        plain = unfit(data.spec)
        _keep_float(record, failed or f"{data.spec} would take no less than {plain}", plain.bits)
        return None


def without_unused_sign(spec: QuantSpec, batches: Sequence[Tensor]) -> QuantSpec:
    """Return symmetric codes without a sign where no value has one: 0 to 255, still around 0."""
    if not spec.symmetric or any(bool((batch < 0).any()) for batch in batches):
        return spec
    return replace(spec, signed=False, symmetric=False, full_range=False)


def _record(data: LayerData) -> LayerRecord:
    weight, op = data.layer.weight, str(data.layer.node.target).split(".")[1]
    size = data.spec.storage_bytes(tuple(weight.shape))
    return LayerRecord(data.layer.name, op, str(data.spec), weight.numel(), size)


def _keep_float(record: LayerRecord, reason: str, bits: int) -> None:
    record.add_note(f"stays float: {reason}")
    record.weight, record.rounding, record.bias_corrected = f"fp{bits}", "", False
    record.bytes = bits // 8 * record.parameters


def relevant(source: fx.Node, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the values whose codes matter: before a softmax, those within reach of their row's largest.

    A mask adds -1e4 or less; a range that held it would leave one code for all other values.
    """
    users = [u for user in source.users for u in (user.users if user.target == OBSERVE else [user])]
    if not users or any(u.target != aten.softmax.int for u in users):
        return batches
    dim = int(users[0].args[1])  # type: ignore[arg-type]
    return [b[b >= b.amax(dim, keepdim=True) - SOFTMAX_REACH] for b in batches]
