"""Putting codes into a graph: what replaces an observer."""

from __future__ import annotations

from torch import Tensor, fx, int64, zeros

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, DEQUANTIZE_PER_CHANNEL, QUANTIZE
from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Rounded


def code_range(spec: QuantSpec, params: QuantParams) -> tuple[object, ...]:
    """Return the arguments that quantize and dequantize take after the tensor."""
    return float(params.scale), int(params.zero_point), spec.qmin, spec.qmax, spec.dtype


def store_activation(
    graph: Graph, observer: fx.Node, spec: QuantSpec, params: QuantParams
) -> fx.Node:
    """Replace an observer by a quantize/dequantize pair; return the dequantize."""
    source = observer.args[0]
    assert isinstance(source, fx.Node)
    arguments = code_range(spec, params)
    with graph.before(observer):
        codes = graph.add_call(QUANTIZE, source, *arguments, name=f"{source.name}_q")
        new = graph.add_call(DEQUANTIZE, codes, *arguments, name=f"{source.name}_dq")
    graph.replace(observer, new)
    return new


def store_constant(
    graph: Graph, observer: fx.Node, spec: QuantSpec, params: QuantParams
) -> fx.Node:
    """Replace an observed constant operand by codes and a dequantize; return the dequantize."""
    source = observer.args[0]
    assert isinstance(source, fx.Node)
    value = graph.constant(source)
    assert value is not None
    with graph.before(observer):
        codes = graph.add_constant(f"{source.target}_codes", spec.encode(value, params))
        new = graph.add_call(DEQUANTIZE, codes, *code_range(spec, params))
    graph.replace(observer, new)
    return new


def store_weight(graph: Graph, observer: fx.Node, rounded: Rounded, spec: QuantSpec) -> None:
    """Replace an observed weight by codes, scales and a dequantize."""
    weight = observer.args[0]
    assert isinstance(weight, fx.Node)
    name = str(weight.target)
    with graph.before(observer):
        codes = graph.add_constant(f"{name}_codes", rounded.codes)
        if spec.granularity is Granularity.PER_TENSOR:
            new = graph.add_call(DEQUANTIZE, codes, *code_range(spec, rounded.params))
        else:
            scale = rounded.params.scale.flatten()
            scales = graph.add_constant(f"{name}_scale", scale)
            zero = graph.add_constant(f"{name}_zero_point", zeros(len(scale), dtype=int64))
            limits = (spec.axis, spec.qmin, spec.qmax, spec.dtype)
            new = graph.add_call(DEQUANTIZE_PER_CHANNEL, codes, scales, zero, *limits)
    graph.replace(observer, new)


def store_bias(graph: Graph, layer: Layer, bias: Tensor) -> None:
    """Give a layer another bias, or its first."""
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
