"""Putting codes into a graph: what replaces an observer."""

from __future__ import annotations

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import (
    DEQUANTIZE,
    DEQUANTIZE_BLOCKWISE,
    DEQUANTIZE_PER_CHANNEL,
    LOOKUP,
    QUANTIZE,
)
from qcompile.compiler.ir.quant import Granularity, QuantParams, QuantSpec
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.rounding import Coded, Palettized, Rounded


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
        name = f"{source.name}_dq"
        new = graph.add_call(DEQUANTIZE, codes, *arguments, name=name, like=observer)
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


def store_weight(graph: Graph, observer: fx.Node, coded: Coded) -> None:
    """Replace an observed weight by codes, scales or tables, and what decodes them."""
    weight = observer.args[0]
    assert isinstance(weight, fx.Node)
    with graph.before(observer):
        new = add_decoder(graph, str(weight.target), coded)
    graph.replace(observer, new)


def add_decoder(graph: Graph, name: str, coded: Coded) -> fx.Node:
    """Add a weight's constants and what decodes them at the place set; return the decoder.

    Args:
        graph: Changed.
        name: FQN of the weight, which the constants' names begin with.
        coded: The weight.
    """
    if isinstance(coded, Palettized):
        return _add_lookup(graph, name, coded)
    spec, params = coded.spec, coded.params
    codes = graph.add_constant(f"{name}_codes", coded.codes)
    if spec.is_blockwise:
        return _add_blockwise(graph, name, coded, codes)
    if spec.granularity is Granularity.PER_TENSOR:
        return graph.add_call(DEQUANTIZE, codes, *code_range(spec, params))
    scales = graph.add_constant(f"{name}_scale", params.scale.flatten())
    zero = graph.add_constant(f"{name}_zero_point", params.zero_point.flatten())
    limits = (spec.axis, spec.qmin, spec.qmax, spec.dtype)
    return graph.add_call(DEQUANTIZE_PER_CHANNEL, codes, scales, zero, *limits)


def _add_blockwise(graph: Graph, name: str, coded: Rounded, codes: fx.Node) -> fx.Node:
    spec, params = coded.spec, coded.params
    shape = params.scale.shape if params.scale.dim() else [1] * coded.codes.dim()
    scale = graph.add_constant(f"{name}_scale", params.scale.reshape(shape))
    zero = None
    if not spec.symmetric:
        points = params.zero_point.reshape(shape).to(spec.dtype)
        zero = graph.add_constant(f"{name}_zero_point", points)
    return graph.add_call(DEQUANTIZE_BLOCKWISE, codes, scale, zero, spec.bits, spec.scale_bits)


def _add_lookup(graph: Graph, name: str, coded: Palettized) -> fx.Node:
    params = coded.params
    indices = graph.add_constant(f"{name}_indices", coded.codes)
    if params.lut_codes is None or params.lut_scale is None:
        lut = graph.add_constant(f"{name}_lut", params.lut)
    else:
        entries = graph.add_constant(f"{name}_lut_codes", params.lut_codes)
        unit = graph.add_constant(f"{name}_lut_scale", params.lut_scale.reshape(1, 1))
        lut = graph.add_call(DEQUANTIZE_BLOCKWISE, entries, unit, None, 8, 16)
    scale = None if params.scale is None else graph.add_constant(f"{name}_scale", params.scale)
    return graph.add_call(LOOKUP, indices, lut, scale, 16)


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
