"""What integer arithmetic costs in quality at each place where it is chosen: weights, and stored values.

The cost of an error is that of ``weight_damage.py``: half the mean square of its product with a random
gradient of the outputs. Every error is measured alone, in the float graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, OBSERVE, QUANTIZE
from qcompile.compiler.ir.quant import QuantSpec, WeightFormat, WeightSpec, parse_weight_spec
from qcompile.passes.calibration.observers import choose, histogram
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import Cotangent, Watched, WayBack
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.mixed_precision.integer_trial import Prepared
from qcompile.passes.mixed_precision.weight_damage import WeightDamage, squared_products
from qcompile.passes.quantization.quantizer import relevant, without_unused_sign
from qcompile.passes.quantization.store import code_range


@dataclass(frozen=True)
class LayerDamages:
    """Costs a sample, in nats or as squared error over power, as the way back's gradients say.

    Args:
        weights: By the weight's name.
        values: By the name of the node that is stored.
    """

    weights: Mapping[str, float]
    values: Mapping[str, float]


def layer_damages(
    prepared: Prepared,
    samples: Samples,
    cotangent: Cotangent,
    max_bytes: int = 1 << 30,
    on_node: Callable[[float], None] = lambda share: None,
) -> LayerDamages:
    """Measure all places, in one pass forward and one back.

    Args:
        prepared: What would be in integers.
        samples: All in flight.
        cotangent: Of the outputs.
        max_bytes: Values in memory.
        on_node: Told the share that is done.
    """
    graph, formats = prepared.graph.copy(), {}
    prepared.observers.run(graph)
    readers: dict[str, list[fx.Node]] = {}
    for layer, name, spec in _observed_weights(graph):
        readers.setdefault(name, []).append(layer)
        formats[name] = [WeightFormat(str(spec), spec)]
    _straight_through(graph)
    stored = [n for n in graph.calls(OBSERVE) if not n.args[2]]
    sizes = [len(next(iter(batch.values()))) for batch in samples]
    found: dict[str, float] = {}
    weights = WeightDamage(
        graph, formats, readers, sizes, "nearest",
        lambda name, trials: found.update({name: next(iter(trials.damage.values()))}),
    )  # fmt: skip
    values = _ValueDamage(prepared.quantize.unit_range, stored, sizes)
    WayBack(graph, samples, cotangent, max_bytes, on_node).run(_Both(weights, values))
    return LayerDamages({n: found.get(n, 0.0) for n in formats}, values.found)


@dataclass
class _ValueDamage:
    """A visitor of the way back: what storing values in codes costs.

    Args:
        unit_range: Ops whose output is in [0, 1] whatever the data.
        watched: The observers.
        sizes: How many samples each batch has.
    """

    unit_range: frozenset[object]
    watched: Sequence[fx.Node]
    sizes: Sequence[int]
    found: dict[str, float] = field(default_factory=dict)

    def visit(self, node: fx.Node, over: Watched) -> None:
        """Add up what the codes of a value cost."""
        source = _source(node)
        values = over.batches(source)
        codes = self._codes(source, values, QuantSpec.parse(str(node.args[1])))

        def of(index: int) -> float:
            exact: Tensor = values[index]
            coded = DEQUANTIZE(QUANTIZE(exact, *codes), *codes)
            return squared_products(over.gradients(index), exact, coded, self.sizes[index])

        costs = each(of, range(len(self.sizes)))
        self.found[source.name] = 0.5 * sum(costs) / sum(self.sizes)

    def _codes(
        self, source: fx.Node, values: Sequence[Tensor], spec: QuantSpec
    ) -> tuple[object, ...]:
        """Return scale, zero point and range as a build would choose them for exact values."""
        if source.target in self.unit_range:
            return code_range(spec, spec.params(torch.tensor(0.0), torch.tensor(1.0)))
        spec = without_unused_sign(spec, values)
        return code_range(spec, choose(histogram(relevant(source, values)), spec).params)


@dataclass(frozen=True)
class _Both:
    weights: WeightDamage
    values: _ValueDamage

    @property
    def watched(self) -> set[fx.Node]:
        return {*self.weights.watched, *self.values.watched}

    def visit(self, node: fx.Node, over: Watched) -> None:
        visitor = self.values if node.target == OBSERVE else self.weights
        visitor.visit(node, over)


def _source(observer: fx.Node) -> fx.Node:
    source = observer.args[0]
    assert isinstance(source, fx.Node)
    return source


def _observed_weights(graph: Graph) -> list[tuple[fx.Node, str, WeightSpec]]:
    """Return each layer with its weight's name and format; observers of constants are taken out."""
    found = []
    for observer in graph.calls(OBSERVE):
        source, text = _source(observer), str(observer.args[1])
        if source.op == "get_attr":
            layers = [n for n in observer.users if n.target in LAYERS and n.args[1] is observer]
            found += [(node, str(source.target), parse_weight_spec(text)) for node in layers]
            graph.replace(observer, source)
    return found


def _straight_through(graph: Graph) -> None:
    """Let gradients pass q/dq pairs that are there already."""
    for node in graph.calls(DEQUANTIZE):
        codes = node.args[0]
        if isinstance(codes, fx.Node) and codes.target == QUANTIZE:
            node.replace_all_uses_with(codes.args[0])  # type: ignore[arg-type]
    graph.erase_unused()
