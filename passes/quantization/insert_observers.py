"""Mark which weights and activations will be quantized, and how; nothing is computed yet.

Before:  y = relu(conv2d(x, w, b));  z = linear(flatten(y), v)
After:   xo = observe(x, "uint8 asym per_tensor");  wo = observe(w, "int8 sym per_channel(0)")
         y = relu(conv2d(xo, wo, b));  yo = observe(y, ...)
         f = flatten(yo);  fo = observe(f, ..., shares=yo);  vo = observe(v, ...);  z = linear(fo, vo)

An op with an integer kernel has all its operands observed. Its output is observed where an integer op
reads it, or where the engine needs that to fuse; an activation function after it belongs to it.
Arithmetic becomes integer only next to integer neighbours: between two float ops it would cost two
conversions and save none. A quantize/dequantize pair that is there already, as of
``use-integer-hard-swish``, is an integer neighbour; what it reads and gives is not observed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, OBSERVE, QUANTIZE, aten
from qcompile.compiler.ir.quant import FloatSpec, QuantSpec, WeightSpec
from qcompile.passes.base import Pass
from qcompile.passes.graph.fold_scaling import is_scaling
from qcompile.passes.graph.fusion import ACTIVATIONS, fused_activation
from qcompile.passes.quantization.integer_ops import IntegerOps

SUMS = (aten.add.Tensor, aten.mul.Tensor)


@dataclass(frozen=True)
class InsertObservers(Pass):
    """Place observers.

    Args:
        ops: What the engine computes in integers.
        activation: Format of activations; ``None`` to quantize weights alone.
        weight: Format of weights.
        keep_float: Names of weights whose layers stay float.
        weights_alone: Names of weights in codes whose layers compute in float.
        formats: Of single weights, by name; those that it does not name stay float. ``None`` for one format.
    """

    name = "insert-observers"
    ops: IntegerOps = field(repr=False)
    activation: QuantSpec | None
    weight: WeightSpec
    keep_float: frozenset[str] = frozenset()
    weights_alone: frozenset[str] = frozenset()
    formats: Mapping[str, WeightSpec | FloatSpec] | None = field(default=None, repr=False)

    def run(self, graph: Graph) -> int:
        integer = self.integer_nodes(graph)
        placed = 0
        observed: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if node.target in self.ops.layers and (node in integer or self._is_alone(node)):
                placed += self._observe_weight(graph, node)
            if self.activation is not None and self._stores_integers(node, integer):
                placed += self._observe(graph, node, integer, observed)
        return placed

    def integer_nodes(self, graph: Graph) -> set[fx.Node]:
        """Return the nodes that the engine will compute in integers."""
        found = {n for n in graph.nodes if self._always(graph, n)}
        while True:
            more = {
                n
                for n in graph.nodes
                if n not in found and n.target in self.ops.arithmetic and self._pays(n, found)
            }
            if not more:
                return found
            found |= more

    def stored_values(self, graph: Graph) -> set[fx.Node]:
        """Return the values that would be stored in integers of a scale of their own."""
        integer = self.integer_nodes(graph)
        return {
            n
            for n in graph.nodes
            if n.target not in self.ops.moves and self._stores_integers(n, integer)
        }

    def _always(self, graph: Graph, node: fx.Node) -> bool:
        if node.target in (QUANTIZE, DEQUANTIZE):
            return True
        if node.target in self.ops.products:
            return all(_is_float(a) for a in node.args[:2])
        if node.target not in self.ops.layers:
            return False
        weight = node.args[1]
        is_constant = isinstance(weight, fx.Node) and weight.op == "get_attr"
        floats = self.keep_float | self.weights_alone
        if not is_constant or str(weight.target) in floats:  # type: ignore[union-attr]
            return False
        return self._format(str(weight.target)) is not None  # type: ignore[union-attr]

    def _is_alone(self, node: fx.Node) -> bool:
        weight = node.args[1]
        return isinstance(weight, fx.Node) and str(weight.target) in self.weights_alone

    def _format(self, name: str) -> WeightSpec | None:
        """Return the format of a weight; ``None`` for float."""
        if self.formats is None:
            return self.weight
        found = self.formats.get(name)
        return None if isinstance(found, FloatSpec) else found

    def _pays(self, node: fx.Node, integer: set[fx.Node]) -> bool:
        operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if not all(_is_float(n) for n in node.all_input_nodes) or not _is_float(node):
            return False
        if node.target in SUMS and len(node.all_input_nodes) < 2 and not _is_square(node):
            return False  # with a number: the engine has no integer kernel for that
        if any(n in integer for n in self._readers(node)):
            return True
        writers = [self._writer(n) for n in operands]
        return all(w in integer and w.target not in self.ops.products for w in writers) and any(
            w.target in self.ops.needs_output for w in writers
        )

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """Return what reads a value, through activation functions and moves."""
        found: list[fx.Node] = []
        for user in node.users:
            through = self._moves_on(user) or user.target in ACTIVATIONS
            found += self._readers(user) if through else [user]
        return found

    def _writer(self, node: fx.Node) -> fx.Node:
        """Return what computed a value, through activation functions and moves."""
        while self._moves_on(node) or node.target in ACTIVATIONS:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            node = source
        return node

    def _stores_integers(self, node: fx.Node, integer: set[fx.Node]) -> bool:
        """Return whether this value is stored in integers."""
        if node.op == "output" or fused_activation(node) is not None or not _is_float(node):
            return False
        if node.target == DEQUANTIZE or any(u.target == QUANTIZE for u in node.users):
            return False  # it has its scale
        if is_scaling(node) and self._writer(node) in integer:
            return False  # it will have its input's scale, times a number
        writer = self._writer(node)
        if node.op == "get_attr":
            return any(u in integer and self._is_operand(node, u) for u in node.users)
        if writer in integer and writer.target in self.ops.needs_output:
            return True
        if writer in integer and writer.target in self.ops.arithmetic:
            return True
        return any(r in integer for r in self._readers(node))

    def _is_operand(self, node: fx.Node, user: fx.Node) -> bool:
        return user.target not in self.ops.layers or user.args[0] is node

    def _observe(
        self,
        graph: Graph,
        node: fx.Node,
        integer: set[fx.Node],
        observed: dict[fx.Node, fx.Node],
    ) -> int:
        source = node.args[0] if node.target in self.ops.moves else None
        shares = observed[source].name if isinstance(source, fx.Node) and source in observed else ""
        with graph.after(node):
            marked = graph.add_call(OBSERVE, node, str(self.activation), shares, like=node)
        observed[marked] = marked
        for user in list(node.users):
            from_integer = self._writer(node) in integer
            if user is not marked and (from_integer or user in integer or self._moves_on(user)):
                self._redirect(user, node, marked)
        return 1

    def _moves_on(self, user: fx.Node) -> bool:
        return user.target in self.ops.moves or is_scaling(user)

    def _redirect(self, user: fx.Node, node: fx.Node, marked: fx.Node) -> None:
        if user.target in self.ops.layers and user.args[0] is not node:
            return
        user.replace_input_with(node, marked)

    def _observe_weight(self, graph: Graph, node: fx.Node) -> int:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        with graph.before(node):
            format = str(self._format(str(weight.target)))
            marked = graph.add_call(OBSERVE, weight, format, "", like=weight)
        node.update_arg(1, marked)
        return 1


def _is_square(node: fx.Node) -> bool:
    return len(node.args) > 1 and node.args[0] is node.args[1]


def _is_float(node: object) -> bool:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()
