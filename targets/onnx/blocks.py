"""Codes in blocks: from the IR's op to ``DequantizeLinear`` with INT4 and INT2 constants.

Before:  w = qcompile.DequantizeBlockwise(codes int8 [o, i, h, w], scale [o, n, 1, 1], zero_point, bits=4)
After:   d = DequantizeLinear(codes INT4 [o, i * h * w], scale [o, n], axis=1, block_size=i * h * w / n)
         w = Reshape(d, [o, i, h, w])

A block of input channels is a run of the flattened row, since it covers all kernel positions. INT4 is of
opset 21, INT2 of opset 25 (https://onnx.ai/onnx/operators/onnx__DequantizeLinear.html).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE

if TYPE_CHECKING:
    import onnx_ir

DOMAIN, OP = "qcompile", "DequantizeBlockwise"
_SHORT = "val_0_"
"""What the exporter's own names begin with, which ``rewrites.shorten_names`` numbers."""
OPSET = {8: 21, 4: 21, 2: 25}
"""The first with codes of so many bits."""


def needed_opset(graph: Graph) -> int:
    """Return the first opset that has the codes of a graph."""
    bits = {int(node.args[3]) for node in graph.calls(DEQUANTIZE_BLOCKWISE)}  # type: ignore[arg-type]
    return max((OPSET[b] for b in bits), default=21)


def translations() -> dict[Any, Callable[..., Any]]:
    """Return what ``torch.onnx`` is told of the op: it becomes a call that ``lower_blocks`` replaces."""
    call = _operator()

    def blockwise(
        codes: Any, scale: Any, zero_point: Any = None, bits: int = 8, float_bits: int = 32
    ) -> Any:
        points = [] if zero_point is None else [zero_point]
        return call(codes, scale, *points, bits=bits)

    return {DEQUANTIZE_BLOCKWISE: blockwise}


def _operator() -> Any:
    """Return the call by its schema, which onnxscript asks for."""
    from onnx.defs import OpSchema
    from onnxscript import values

    codes, floats = ["tensor(int8)", "tensor(uint8)"], ["tensor(float)"]
    option = OpSchema.FormalParameterOption.Optional
    schema = OpSchema(
        OP,
        DOMAIN,
        1,
        inputs=[
            OpSchema.FormalParameter("codes", "C"),
            OpSchema.FormalParameter("scale", "F"),
            OpSchema.FormalParameter("zero_point", "C", param_option=option),
        ],
        outputs=[OpSchema.FormalParameter("weight", "F")],
        type_constraints=[("C", codes, ""), ("F", floats, "")],
        attributes=[OpSchema.Attribute("bits", OpSchema.AttrType.INT, "", required=True)],
    )
    return values.Op(values.Opset(DOMAIN, 1), OP, schema)


def lower_blocks(model: onnx_ir.Model) -> int:
    """Replace each call by standard ops; return how many."""
    import onnx_ir as ir

    replaced = 0
    for node in list(model.graph):
        if (node.domain, node.op_type) != (DOMAIN, OP):
            continue
        new = _lowered(model, node)
        model.graph.insert_before(node, new)
        old = node.outputs[0]
        new[-1].outputs[0].shape, new[-1].outputs[0].type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new[-1].outputs[0])
        model.graph.remove(node, safe=True)
        replaced += 1
    model.opset_imports.pop(DOMAIN, None)
    return replaced


def _lowered(model: onnx_ir.Model, node: onnx_ir.Node) -> list[onnx_ir.Node]:
    import onnx_ir as ir

    codes, scale, *points = (_numpy(value) for value in node.inputs if value is not None)
    bits = node.attributes.get_int("bits", 8)
    shape, blocks = codes.shape, scale.shape[1] if scale.ndim > 1 else 1
    columns = int(np.prod(shape[1:]))
    base = str(node.inputs[0].name)  # type: ignore[union-attr]
    given = [
        _constant(model, f"{base}_packed", codes.reshape(shape[0], columns), bits),
        _constant(model, f"{_SHORT}{base}_scale", scale.reshape(shape[0], blocks)),
        *(
            _constant(model, f"{_SHORT}{base}_zero", p.reshape(shape[0], blocks), bits)
            for p in points
        ),
    ]
    settings = {"axis": 1, "block_size": columns // blocks}
    found = [ir.node("DequantizeLinear", given, attributes=settings)]
    if len(shape) != 2:
        sizes = _constant(model, f"{_SHORT}{base}_shape", np.array(shape, np.int64))
        found.append(ir.node("Reshape", [found[0].outputs[0], sizes]))
    return found


def _numpy(value: Any) -> NDArray[Any]:
    import onnx_ir as ir

    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None, "codes and scales are constants"
    found: NDArray[Any] = tensor.numpy()
    return found


def _constant(model: onnx_ir.Model, name: str, data: NDArray[Any], bits: int = 8) -> onnx_ir.Value:
    import ml_dtypes
    import onnx_ir as ir

    if bits < 8:
        kind = f"{'u' if data.dtype == np.uint8 else ''}int{bits}"
        data = data.astype(getattr(ml_dtypes, kind))
    tensor = ir.tensor(np.ascontiguousarray(data), name=name)
    value = ir.Value(name=name, const_value=tensor)
    value.shape, value.type = ir.Shape(data.shape), ir.TensorType(tensor.dtype)
    model.graph.register_initializer(value)
    return value
