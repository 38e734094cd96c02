"""What the walk of ``quantize`` decided, apart from the walk: kept, it quantizes an equal graph without data.

    observer of an activation -> its range;  layer -> its weight in codes, and its bias

A constant operand's range is its own, and is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import OBSERVE
from qcompile.compiler.ir.palette import PaletteParams, PaletteSpec
from qcompile.compiler.ir.quant import QuantParams, QuantSpec, parse_weight_spec
from qcompile.compiler.stages.entry import Entry
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.records import ActivationRecord, LayerRecord, QuantizationLog
from qcompile.passes.quantization.rounding import Coded, Palettized, Rounded
from qcompile.passes.quantization.store import (
    store_activation,
    store_bias,
    store_constant,
    store_weight,
)


@dataclass(frozen=True)
class RangeDecision:
    """The codes of an activation.

    Args:
        spec: Their format.
        params: Scale and zero point, of the whole tensor.
        record: Its row of the log.
    """

    spec: QuantSpec
    params: QuantParams
    record: ActivationRecord

    def apply(self, graph: Graph, observer: fx.Node) -> fx.Node:
        """Replace the observer; return the dequantize."""
        return store_activation(graph, observer, self.spec, self.params)


@dataclass(frozen=True)
class WeightDecision:
    """A layer's constants.

    Args:
        rounded: Its weight; ``None`` for one that stays float.
        bias: Another bias than its own, ``[out]``, or ``None``.
        record: Its row of the log.
    """

    rounded: Coded | None
    bias: Tensor | None
    record: LayerRecord

    def apply(self, graph: Graph, layer: Layer, observer: fx.Node) -> None:
        """Replace the observer of the weight, and the bias."""
        if self.rounded is None:
            weight = observer.args[0]
            assert isinstance(weight, fx.Node)
            graph.replace(observer, weight)
            return
        store_weight(graph, observer, self.rounded)
        if self.bias is not None:
            store_bias(graph, layer, self.bias)


Decision = RangeDecision | WeightDecision


def weight_observer(node: fx.Node) -> fx.Node | None:
    """Return the observer of a layer's weight."""
    weight = node.args[1] if node.target in LAYERS else None
    return weight if isinstance(weight, fx.Node) and weight.target == OBSERVE else None


def replay(graph: Graph, decisions: Mapping[str, Decision], log: QuantizationLog) -> None:
    """Quantize a graph as it was decided, in the order of the walk.

    Args:
        graph: Equal to the one that they were made for.
        decisions: By the name of the observer or layer.
        log: Gets their rows.
    """
    for node in graph.nodes:
        if (observer := weight_observer(node)) is not None:
            decided = decisions[node.name]
            assert isinstance(decided, WeightDecision)
            decided.apply(graph, _layer(graph, node, observer), observer)
            log.layers.append(decided.record)
        elif node.target == OBSERVE and node.name in decisions:
            decided = decisions[node.name]
            assert isinstance(decided, RangeDecision)
            decided.apply(graph, node)
            log.activations.append(decided.record)
        elif node.target == OBSERVE and not all(weight_observer(u) is node for u in node.users):
            value = graph.constant(node.args[0])
            assert value is not None
            spec = QuantSpec.parse(str(node.args[1]))
            store_constant(graph, node, spec, spec.min_max(value))


def pack(decisions: Mapping[str, Decision]) -> Entry:
    """Return decisions as a stage's entry."""
    tensors: dict[str, Tensor] = {}
    facts = []
    for name, decided in decisions.items():
        coded = decided if isinstance(decided, RangeDecision) else decided.rounded
        found = {} if coded is None else _params(coded.params)
        if isinstance(decided, WeightDecision):
            codes = None if decided.rounded is None else decided.rounded.codes
            found |= {"codes": codes, "bias": decided.bias}
        tensors |= {f"{name}.{part}": value for part, value in found.items() if value is not None}
        facts.append({
            "node": name,
            "spec": None if coded is None else str(coded.spec),
            "method": coded.method if isinstance(coded, Rounded | Palettized) else None,
            "record": asdict(decided.record),
        })  # fmt: skip
    return Entry(tensors, facts)


def unpack(entry: Entry) -> dict[str, Decision]:
    """Return the decisions of an entry."""
    return {fact["node"]: _decision(entry.tensors, fact) for fact in entry.facts}


def _decision(tensors: Mapping[str, Tensor], fact: Mapping[str, Any]) -> Decision:
    name, text = fact["node"], fact["spec"]
    parts = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
    bias, codes = parts.pop("bias", None), parts.pop("codes", None)
    spec = None if text is None else parse_weight_spec(text)
    if "op" not in fact["record"]:
        assert isinstance(spec, QuantSpec)
        return RangeDecision(spec, QuantParams(**parts), ActivationRecord(**fact["record"]))
    record = LayerRecord(**fact["record"])
    if spec is None:
        return WeightDecision(None, bias, record)
    assert codes is not None
    if isinstance(spec, PaletteSpec):
        coded: Coded = Palettized(spec, codes, PaletteParams(**parts), fact["method"])
    else:
        coded = Rounded(spec, codes, QuantParams(**parts), fact["method"])
    return WeightDecision(coded, bias, record)


def _params(params: QuantParams | PaletteParams) -> dict[str, Tensor | None]:
    return dict(vars(params))


def _layer(graph: Graph, node: fx.Node, observer: fx.Node) -> Layer:
    weight_node = observer.args[0]
    assert isinstance(weight_node, fx.Node)
    weight = graph.constant(weight_node)
    assert weight is not None
    bias = graph.constant(node.args[2]) if len(node.args) > 2 else None
    return Layer(node, str(weight_node.target), weight, bias)
