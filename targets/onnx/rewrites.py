"""Rewrites of an ONNX model: what ONNX Runtime needs to compute in integers, and what makes it smaller."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir


def use_global_average_pool(model: onnx_ir.Model) -> int:
    """Replace ReduceMean over the positions of an image, which ONNX Runtime has in float only.

    ``torch.onnx`` decomposes ``adaptive_avg_pool2d(x, [1, 1])`` to it.
    """
    import onnx_ir as ir

    replaced = 0
    for node in list(model.graph):
        if node.op_type != "ReduceMean" or len(node.inputs) < 2:
            continue
        source, wanted = node.inputs[:2]
        axes = None if wanted is None else ir.convenience.get_const_tensor(wanted)
        rank = source.shape.rank() if source is not None and source.shape is not None else None
        keeps = node.attributes.get_int("keepdims", 1) == 1
        if axes is None or rank != 4 or not keeps:
            continue
        if sorted(int(a) % 4 for a in axes.numpy()) != [2, 3]:
            continue
        pool = ir.node("GlobalAveragePool", [source], name=node.name)
        pool.outputs[0].shape, pool.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
        ir.convenience.replace_nodes_and_values(
            model.graph, node, [node], [pool], node.outputs, pool.outputs
        )
        replaced += 1
    return replaced


def quantize_gemm_biases(model: onnx_ir.Model) -> int:
    """Give each integer Gemm its bias as int32 with the scale of its products.

    ONNX Runtime 1.31 does so itself for Conv, where a float bias is smaller; a Gemm with a float bias
    stays float (measured).
    """
    import onnx_ir as ir

    changed = 0
    for node in list(model.graph):
        if node.op_type != "Gemm" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        bias = ir.convenience.get_const_tensor(node.inputs[2])
        scales = [_dequantize_scale(v) for v in node.inputs[:2]]
        if bias is None or scales[0] is None or scales[1] is None:
            continue
        scale = (scales[0] * scales[1]).astype(np.float32)
        per_row = np.broadcast_to(scale, bias.shape.numpy()) if scale.ndim == 0 else scale
        codes = np.rint(bias.numpy().astype(np.float64) / per_row)
        if np.abs(codes).max(initial=0) >= 2**31:
            continue
        base = str(node.inputs[2].name)
        values = [_constant(model, f"{base}_codes", codes.astype(np.int32))]
        values.append(_constant(model, f"{base}_scale", np.ascontiguousarray(per_row)))
        dequantize = ir.node("DequantizeLinear", values, attributes={"axis": 0})
        model.graph.insert_before(node, dequantize)
        node.replace_input_with(2, dequantize.outputs[0])
        changed += 1
    return changed


def _dequantize_scale(value: Any) -> Any:
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in ("Reshape", "Flatten", "Transpose"):
        producer = producer.inputs[0].producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    scale = producer.inputs[1].const_value
    return None if scale is None else scale.numpy()


def _constant(model: onnx_ir.Model, name: str, data: Any) -> onnx_ir.Value:
    import onnx_ir as ir

    value = ir.Value(name=name, const_value=ir.tensor(data, name=name))
    value.shape, value.type = (
        ir.Shape(data.shape),
        ir.TensorType(ir.DataType.from_numpy(data.dtype)),
    )
    model.graph.register_initializer(value)
    return value


def drop_zero_points(model: onnx_ir.Model) -> int:
    """Drop zero points of weights that are all 0: absent means 0.

    Those of a Gemm stay, because ONNX Runtime 1.31 makes a QGemm only with them (measured).
    """
    import onnx_ir as ir

    dropped = 0
    for node in model.graph:
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3 or node.inputs[2] is None:
            continue
        codes, zeros = node.inputs[0], ir.convenience.get_const_tensor(node.inputs[2])
        readers = {user.op_type for user, _ in node.outputs[0].uses()}
        weight = codes is not None and codes.const_value is not None
        if not weight or zeros is None or bool(zeros.numpy().any()) or readers & {"Gemm", "MatMul"}:
            continue
        if codes is not None and codes.dtype == ir.DataType.UINT8:
            continue
        node.resize_inputs(2)
        dropped += 1
    return dropped


def strip(model: onnx_ir.Model) -> None:
    """Remove unused initializers and all that names this machine: doc strings, traces, shapes inside."""
    from onnx_ir.passes.common import (
        ClearMetadataAndDocStringPass,
        DeduplicateInitializersPass,
        RemoveUnusedNodesPass,
    )

    for step in (
        RemoveUnusedNodesPass(),
        DeduplicateInitializersPass(size_limit=1 << 30),
        RemoveUnusedNodesPass(),
        ClearMetadataAndDocStringPass(),
    ):
        step(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.graph.name = "qcompile"
    model.producer_name, model.producer_version = "qcompile", None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if value not in model.graph.outputs:
                value.shape, value.type = None, None


def shorten_names(model: onnx_ir.Model) -> None:
    """Number what the exporter named; inputs, outputs, weights and layers keep their names."""
    generated = re.compile(r"val_\d+|quantize_per|dequantize_per|.*_d?q(_\d+)?$")
    for index, node in enumerate(model.graph):
        node.name = None
        for value in node.outputs:
            if value not in model.graph.outputs:
                value.name = f"v{index}"
    used = {f"v{i}" for i in range(len(model.graph))}
    for index, (name, value) in enumerate(list(model.graph.initializers.items())):
        short = f"c{index}"
        if generated.match(name) and short not in used:
            model.graph.initializers.pop(name)
            value.name = short
            model.graph.initializers[short] = value
