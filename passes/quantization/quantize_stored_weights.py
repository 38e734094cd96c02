"""Store in codes what no integer kernel reads: embedding tables and the weights of recurrent layers.

Before:  e = embedding(table, ids);         r = lstm(x, state, [w_ih, w_hh, b], ...)
After:   c = embedding(table_codes, ids);  s = embedding(table_scale, ids)
         e = mul(to(c, float32), s);        d = dequantize(w_ih_codes, w_ih_scale, ...)
                                            r = lstm(x, state, [d, ...])

Of a table only the rows that are looked up are decoded, each with its own scale; decoding the table and
then looking up would decode all of it at every call (FORMATS 0.5). The arithmetic stays float.

An engine that decodes weights once, when it loads them, takes whole tables in any format:
After:   d = dequantize_blockwise(table_codes, table_scale, ...);  e = embedding(d, ids)
An output layer that is tied to the table then reads ``d`` too, so that it is stored once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.quant import FloatSpec, Granularity, QuantSpec, WeightSpec
from qcompile.passes.base import Pass
from qcompile.passes.quantization.fitting import formats
from qcompile.passes.quantization.palettize import code_weight
from qcompile.passes.quantization.records import LayerRecord, QuantizationLog, sqnr_db
from qcompile.passes.quantization.rounding import Coded, Rounded
from qcompile.passes.quantization.store import add_decoder

RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
MIN_SQNR_DB = 10.0
"""A weight that a format leaves less of gets the next wider one."""
_SPEC = QuantSpec(granularity=Granularity.PER_CHANNEL, axis=0)


@dataclass(frozen=True)
class QuantizeStoredWeights(Pass):
    """Quantize tables and recurrent weights, each value by itself, for the least squared error.

    Args:
        log: Gets a row a weight.
        smallest: Weights with fewer elements stay float: their scales would eat the gain.
        keep_float: Names of weights that stay float.
        weight: The format, for single rows ``int8 sym per_channel(0)``.
        whole_table: Decode tables before the look-up, not the rows after it.
        recurrent: Store the weights of recurrent layers in codes too.
        formats: Of single weights, by name, taken as they are; those that it does not name stay float.
            ``None`` for one format.
    """

    name = "quantize-stored-weights"
    log: QuantizationLog = field(repr=False)
    smallest: int = 1024
    keep_float: frozenset[str] = frozenset()
    weight: WeightSpec = _SPEC
    whole_table: bool = False
    recurrent: bool = True
    formats: Mapping[str, WeightSpec | FloatSpec] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.whole_table and self.weight != _SPEC:
            raise ValueError(
                f"rows are looked up in {_SPEC}, not {self.weight}: use whole_table=True"
            )

    def run(self, graph: Graph) -> int:
        rewrites = 0
        for node in graph.calls(aten.embedding.default):
            rewrites += self._whole(graph, node) if self.whole_table else self._rows(graph, node)
        for node in graph.calls(*RECURRENT) if self.recurrent else []:
            for weight in [n for n in node.all_input_nodes if self._is_large(graph, n)]:
                rewrites += self._recurrent(graph, node, weight)
        if rewrites:
            graph.erase_unused()
        return rewrites

    def _rows(self, graph: Graph, node: fx.Node) -> int:
        table, ids = node.args[:2]
        if not isinstance(table, fx.Node) or not self._is_large(graph, table):
            return 0
        if any(user.target != aten.embedding.default for user in table.users):
            return 0  # a tied output layer reads it too
        name = str(table.target)
        coded = self._encode(graph, name, node)
        assert isinstance(coded, Rounded)
        with graph.before(node):
            stored = graph.add_constant(f"{name}_codes", coded.codes)
            scales = graph.add_constant(f"{name}_scale", coded.params.scale)
            row = graph.add_call(aten.embedding.default, stored, ids)
            factor = graph.add_call(aten.embedding.default, scales, ids)
            value = graph.add_call(aten.to.dtype, row, torch.float32)
            decoded = graph.add_call(aten.mul.Tensor, value, factor)
        graph.replace(node, decoded)
        return 1

    def _whole(self, graph: Graph, node: fx.Node) -> int:
        table = node.args[0]
        if not isinstance(table, fx.Node) or not self._is_large(graph, table):
            return 0
        return self._decode_for(graph, table, node, list(table.users))

    def _recurrent(self, graph: Graph, node: fx.Node, weight: fx.Node) -> int:
        return self._decode_for(graph, weight, node, [node])

    def _decode_for(
        self, graph: Graph, weight: fx.Node, node: fx.Node, readers: list[fx.Node]
    ) -> int:
        """Let readers of a weight read what is decoded from codes; return whether they do."""
        coded = self._encode(graph, str(weight.target), node)
        if coded is None:
            return 0
        with graph.before(_first(graph, readers)):
            decoded = add_decoder(graph, str(weight.target), coded)
        for reader in readers:
            reader.replace_input_with(weight, decoded)
        return 1

    def _encode(self, graph: Graph, name: str, node: fx.Node) -> Coded | None:
        """Return the weight in codes, ``None`` where float16 is smaller; write the record."""
        weight = graph.weights[name]
        shape, op = tuple(weight.shape), str(node.target).split(".")[1]
        record = LayerRecord(name, op, "fp16", weight.numel(), 2 * weight.numel())
        self.log.layers.append(record)
        coded: Coded | None = None
        for spec, note in self._candidates(name, shape):
            record.add_note(note)
            coded = code_weight(weight, spec, torch.ones(()))
            record.weight, record.bytes = str(spec), spec.storage_bytes(shape)
            record.rounding = coded.method
            record.weight_sqnr_db = quality = sqnr_db([(weight, coded.decoded)])
            if quality is None or quality >= MIN_SQNR_DB or self.formats is not None:
                break
            record.add_note(f"in {spec} it keeps {quality:.1f} dB, less than {MIN_SQNR_DB:g} dB")
        if coded is None:
            record.add_note(f"stays float: {self.weight} would take no less than fp16")
        return coded

    def _candidates(self, name: str, shape: tuple[int, ...]) -> list[tuple[WeightSpec, str]]:
        """Return the formats that a weight is tried in, with notes."""
        if self.formats is None:
            return formats(self.weight, shape)
        spec = self.formats[name]
        assert not isinstance(spec, FloatSpec)
        return [(spec, "")]

    def _is_large(self, graph: Graph, node: fx.Node) -> bool:
        if node.op != "get_attr" or str(node.target) in self.keep_float:
            return False
        if self.formats is not None:
            found = self.formats.get(str(node.target))
            if found is None or isinstance(found, FloatSpec):
                return False
        weight = graph.weights.peek(str(node.target))
        return weight.dim() == 2 and weight.numel() >= self.smallest and weight.is_floating_point()


def _first(graph: Graph, nodes: list[fx.Node]) -> fx.Node:
    return next(n for n in graph.nodes if n in nodes)
