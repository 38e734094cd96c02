"""Store in int8 what no integer kernel reads: embedding tables and the weights of recurrent layers.

Before:  e = embedding(table, ids);         r = lstm(x, state, [w_ih, w_hh, b], ...)
After:   c = embedding(table_codes, ids);  s = embedding(table_scale, ids)
         e = mul(to(c, float32), s);        d = dequantize(w_ih_codes, w_ih_scale, ...)
                                            r = lstm(x, state, [d, ...])

Of a table only the rows that are looked up are decoded, each with its own scale; decoding the table and
then looking up would decode all of it at every call (FORMATS 0.5). The arithmetic stays float.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_PER_CHANNEL, aten
from qcompile.compiler.ir.quant import Granularity, QuantSpec
from qcompile.passes.base import Pass
from qcompile.passes.quantization.records import LayerRecord, QuantizationLog, sqnr_db
from qcompile.passes.quantization.rounding import round_to_nearest

RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
_SPEC = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


@dataclass(frozen=True)
class QuantizeStoredWeights(Pass):
    """Quantize tables and recurrent weights per row, by the clip with the least squared error.

    Args:
        log: Gets a row a weight.
        smallest: Weights with fewer elements stay float: their scales would eat the gain.
        keep_float: Names of weights that stay float.
    """

    name = "quantize-stored-weights"
    log: QuantizationLog = field(repr=False)
    smallest: int = 1024
    keep_float: frozenset[str] = frozenset()

    def run(self, graph: Graph) -> int:
        rewrites = 0
        for node in graph.calls(aten.embedding.default):
            rewrites += self._table(graph, node)
        for node in graph.calls(*RECURRENT):
            for weight in [n for n in node.all_input_nodes if self._is_large(graph, n)]:
                self._recurrent(graph, node, weight)
                rewrites += 1
        if rewrites:
            graph.erase_unused()
        return rewrites

    def _table(self, graph: Graph, node: fx.Node) -> int:
        table, ids = node.args[:2]
        if not isinstance(table, fx.Node) or not self._is_large(graph, table):
            return 0
        if any(user.target != aten.embedding.default for user in table.users):
            return 0  # a tied output layer reads it too
        name = str(table.target)
        codes, scale = self._encode(graph, name, node)
        with graph.before(node):
            stored = graph.add_constant(f"{name}_codes", codes)
            scales = graph.add_constant(f"{name}_scale", scale[:, None])
            row = graph.add_call(aten.embedding.default, stored, ids)
            factor = graph.add_call(aten.embedding.default, scales, ids)
            value = graph.add_call(aten.to.dtype, row, torch.float32)
            decoded = graph.add_call(aten.mul.Tensor, value, factor)
        graph.replace(node, decoded)
        return 1

    def _recurrent(self, graph: Graph, node: fx.Node, weight: fx.Node) -> None:
        name = str(weight.target)
        codes, scale = self._encode(graph, name, node)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        with graph.before(node):
            args = [
                graph.add_constant(f"{name}_codes", codes),
                graph.add_constant(f"{name}_scale", scale),
                graph.add_constant(f"{name}_zero_point", zeros),
            ]
            decoded = graph.add_call(
                DEQUANTIZE_PER_CHANNEL, *args, 0, _SPEC.qmin, _SPEC.qmax, _SPEC.dtype
            )
        node.replace_input_with(weight, decoded)

    def _encode(self, graph: Graph, name: str, node: fx.Node) -> tuple[Tensor, Tensor]:
        """Return codes and one scale a row; write the record."""
        weight = graph.weights[name]
        rounded = round_to_nearest(weight, _SPEC, torch.ones(()))
        shape = tuple(weight.shape)
        op = str(node.target).split(".")[1]
        record = LayerRecord(name, op, str(_SPEC), weight.numel(), _SPEC.storage_bytes(shape))
        record.rounding = rounded.method
        record.weight_sqnr_db = sqnr_db([(weight, _SPEC.decode(rounded.codes, rounded.params))])
        self.log.layers.append(record)
        return rounded.codes, rounded.params.scale.flatten()

    def _is_large(self, graph: Graph, node: fx.Node) -> bool:
        if node.op != "get_attr" or str(node.target) in self.keep_float:
            return False
        weight = graph.weights.peek(str(node.target))
        return weight.dim() == 2 and weight.numel() >= self.smallest and weight.is_floating_point()
