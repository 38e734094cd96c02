"""What each format of each weight of a graph would cost in quality, before any is chosen.

To second order, an error ``E`` of a weight costs, a sample,

    1/2 mean over samples of  <g, f(x, W + E) - f(x, W)>^2,

with ``f(x, W)`` what the calls that read the weight give, and ``g`` the gradient of a random number that
``cotangents.py`` draws of the outputs: half the cost is in nats of KL divergence, or in relative squared
error. The product is taken over all positions and channels of a sample, so that errors which cancel, or add
up, over the positions of an image count as they do. The errors are those of the encoders that a build uses,
with error feedback, fitted tables and corrected biases; each format is tried on the whole weight.

What errors of several weights do is added (Malinovskii et al. 2024, https://arxiv.org/abs/2411.17525); the
build measures whether that holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.compiler.ir.storage import to_half
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.walk import Values
from qcompile.passes.calibration.way_back import Watched
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.palettize import code_weight
from qcompile.passes.quantization.records import LayerRecord
from qcompile.passes.quantization.trials import LayerData, best_trial

FINE = 6
"""Bits from which a weight is tried to nearest alone: feedback would lower what is nothing to a plan."""


@dataclass(frozen=True)
class Tried:
    """A weight in one format.

    Args:
        weight: What it decodes to.
        bias: Of its layer, if that changes.
    """

    weight: Tensor
    bias: Tensor | None = None


@dataclass(frozen=True)
class Trials:
    """A weight in all of its formats.

    Args:
        tried: By the format's name.
        damage: That each does, by the format's name.
    """

    tried: Mapping[str, Tried]
    damage: Mapping[str, float]


@dataclass(frozen=True)
class _Seen:
    """A layer with its inputs and outputs, a batch each."""

    layer: Layer
    inputs: Values
    reference: Sequence[Tensor]


class WeightDamage:
    """A visitor of the way back.

    Args:
        graph: Of the way back.
        formats: That each weight may have, by its name.
        readers: The calls that read each weight.
        sizes: How many samples each batch has.
        rounding: As the build rounds: ``nearest``, ``gptq`` or ``adaround``.
        told: Told of each weight as soon as it is known.
    """

    def __init__(
        self,
        graph: Graph,
        formats: Mapping[str, Sequence[WeightFormat]],
        readers: Mapping[str, Sequence[fx.Node]],
        sizes: Sequence[int],
        rounding: str,
        told: Callable[[str, Trials], None],
    ) -> None:
        self.graph, self.formats, self.sizes = graph, formats, sizes
        self.rounding, self.told = rounding, told
        self.readers = {name: list(readers[name]) for name in formats}
        self._tried: dict[str, dict[str, Tried]] = {}
        self._costs: dict[str, dict[str, float]] = {}

    @property
    def watched(self) -> set[fx.Node]:
        """The calls that read the weights."""
        return {node for nodes in self.readers.values() for node in nodes}

    def visit(self, node: fx.Node, over: Watched) -> None:
        """Try the formats of the weights that a call reads, and add what their errors cost there."""
        for name in [n for n, nodes in self.readers.items() if node in nodes]:
            if name not in self._tried:
                self._tried[name] = self._try(name, over)
                self._costs[name] = dict.fromkeys(self._tried[name], 0.0)
            for kind, cost in self._cost(node, name, over).items():
                self._costs[name][kind] += cost
            self.readers[name].remove(node)
            if not self.readers[name]:
                self.told(name, Trials(self._tried.pop(name), self._costs.pop(name)))

    def _try(self, name: str, over: Watched) -> dict[str, Tried]:
        """Return a weight in each format, rounded for the inputs of its layer if one layer alone reads it."""
        weight, (first, *others) = self.graph.weights[name], self.readers[name]
        seen = None if others or first.target not in LAYERS else self._seen(first, weight, over)

        def tried(format: WeightFormat) -> Tried:
            spec = format.spec
            if isinstance(spec, FloatSpec):
                half = to_half(weight)
                fits = spec.bits == 16 and bool(half.isfinite().all())
                return Tried(half if fits else weight)
            if seen is None:
                return Tried(code_weight(weight, spec, torch.ones(())).decoded)
            data = LayerData(seen.layer, spec, seen.inputs, seen.reference, drifts=False)
            rounding = self.rounding if spec.bits < FINE else "nearest"
            best = best_trial(data, rounding, LayerRecord(name, "", "", 0, 0))
            return Tried(best.rounded.decoded, best.bias if best.shifted else None)

        formats = self.formats[name]
        return dict(zip((f.name for f in formats), each(tried, formats), strict=True))

    def _seen(self, node: fx.Node, weight: Tensor, over: Watched) -> _Seen:
        source, bias = node.args[0], node.args[2] if len(node.args) > 2 else None
        assert isinstance(source, fx.Node)
        layer = Layer(node, str(node.args[1]), weight, self.graph.constant(bias))
        inputs = over.batches(source)
        reference = each(lambda i: layer(inputs[i], weight, layer.bias), range(len(inputs)))
        return _Seen(layer, Values(inputs, inputs), reference)

    def _cost(self, node: fx.Node, name: str, over: Watched) -> dict[str, float]:
        """Return half the mean over samples of the squared products, of each format."""
        tried = self._tried[name]
        values = {n: over.batches(n) for n in node.all_input_nodes if n.op != "get_attr"}
        held = {n: self.graph.constant(n) for n in node.all_input_nodes if n.op == "get_attr"}

        def of(index: int) -> list[float]:
            gradients = over.gradients(index)
            given = {**held, **{n: v[index] for n, v in values.items()}}
            exact, count = _call(node, given), self.sizes[index]
            found = []
            for one in tried.values():
                changed = _call(node, given, name, one)
                found.append(squared_products(gradients, exact, changed, count))
            return found

        parts = each(of, range(len(self.sizes)))
        sums = (sum(column) for column in zip(*parts, strict=True))
        count = sum(self.sizes)
        return {kind: 0.5 * total / count for kind, total in zip(tried, sums, strict=True)}


def weight_users(graph: Graph, name: str) -> list[fx.Node]:
    """Return the calls that read a constant, in order."""
    constants = {n for n in graph.nodes if n.op == "get_attr" and n.target == name}
    return [n for n in graph.nodes if not constants.isdisjoint(n.all_input_nodes)]


def _call(
    node: fx.Node, given: Mapping[fx.Node, Any], name: str = "", tried: Tried | None = None
) -> Any:
    """Return what a call gives, with one of its weights in another format."""

    def value(source: fx.Node) -> Any:
        is_weight = tried is not None and source.op == "get_attr" and source.target == name
        return tried.weight if is_weight and tried is not None else given[source]

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    if tried is not None and tried.bias is not None:
        args = (*args[:2], tried.bias, *args[3:])
    assert callable(node.target)
    with torch.no_grad():
        return node.target(*args, **kwargs)


def squared_products(
    gradients: Mapping[Any, Tensor], exact: Any, changed: Any, count: int
) -> float:
    """Return the sum over samples of ``<g, changed - exact>^2``, over all parts of an output."""
    total = torch.zeros(count, dtype=torch.float64)
    for part, gradient in gradients.items():
        before, after = (exact, changed) if part is None else (exact[part], changed[part])
        product = gradient * (after - before)
        rows = count if product.shape[0] % count == 0 else 1
        sums = product.reshape(rows, -1).sum(1, dtype=torch.float64)
        total[:rows] += sums
    return float(total.square().sum())
