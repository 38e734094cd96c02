"""Graph -> coremltools model, through the PyTorch front end with a pipeline that keeps our codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.traceback import preserve_node_meta

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.compiler.ir.weights import stand_in
from qcompile.targets.coreml.decompositions import decompositions
from qcompile.targets.coreml.lowering import register
from qcompile.targets.coreml.names import input_name, output_name
from qcompile.targets.coreml.tools import load_coremltools, quiet
from qcompile.targets.origin import raised_by

DROPPED_PASSES = (
    # Move zero points and scales from op to op, which changes codes that were chosen by calibration.
    "common::int_op_canonicalization",
    "common::nullify_redundant_quantization_zero_point",
    "common::dequantize_quantize_pair_elimination",
    "common::distributive_quantized_binary_op_scale_normalization",
    "common::canonicalize_quantized_lut_pattern",
    "common::merge_affine_dequantize_with_consecutive_ops",
    # Folds a constant factor into the weight of the convolution before it.
    "common::fuse_conv_scale",
    "common::fuse_conv_batchnorm",
)


STREAMED_DROPPED_PASSES = ("common::const_deduplication",)
"""Would take two stored weights of one shape for equal: both are stood in for by one number."""
ORIGIN = "qcompile_origin"
"""Key of the metadata by which a node's name outlives decomposition."""


@dataclass(frozen=True)
class Lowered:
    """A graph as the front end takes it.

    Args:
        program: In ops of Core ATen and our own.
        origins: Node of the graph by the name of its node in the program.
    """

    program: ExportedProgram
    origins: Mapping[str, str]


def lower(graph: Graph) -> Lowered:
    """Return the graph decomposed, with a way back from its names."""
    graph = without_unused_attributes(graph)
    for node in graph.nodes:
        node.meta["custom"] = {ORIGIN: node.name}
    _take_apart_clamps(graph)
    with quiet(), preserve_node_meta():
        program = graph.exported().run_decompositions(dict(decompositions()))
    _capitalize_names(program)
    last = {
        str(node.meta["custom"][ORIGIN]): node.name
        for node in program.graph.nodes
        if ORIGIN in node.meta.get("custom", {})
    }  # what an op was taken apart into ends with its result
    return Lowered(program, {name: origin for origin, name in last.items()})


def _capitalize_names(program: ExportedProgram) -> None:
    """Keep node names apart from coremltools': its passes may call an op ``transpose_20`` too."""
    for node in program.graph.nodes:
        if node.op == "call_function":
            old = node.name
            node._rename(old[:1].upper() + old[1:])
            program.graph_signature.replace_all_uses(old, node.name)


def without_unused_attributes(graph: Graph) -> Graph:
    """Return a copy whose module holds the constants that are read and no others.

    Stored ones are stood in for by tensors without memory; ``stream.py`` writes them into the package.
    """
    new = graph.copy()
    constants = {
        n: _stand_in(graph.weights.peek(n)) if n in graph.weights.stored else graph.weights[n]
        for n in graph.weights
    }
    module = fx.GraphModule(constants, new.module.graph)
    return Graph(module, new.inputs, new.outputs, new.dynamic, None, new.interface)  # type: ignore[arg-type]


def _stand_in(weight: torch.Tensor) -> torch.Tensor:
    """Return numbers that no op leaves out: coremltools drops an addition of zeros."""
    value = stand_in((1,), weight.dtype)
    value = value + 0.5 if weight.is_floating_point() else value
    return value[0].expand(weight.shape)


def _take_apart_clamps(graph: Graph) -> None:
    """Write a clamp with a limit a channel as ``minimum(maximum(x, low), high)``: MIL's has numbers."""
    for node in graph.calls(aten.clamp.Tensor):
        limits = [*node.args[1:], *node.kwargs.values()]
        with graph.before(node):
            new = node.args[0]
            for op, limit in zip(
                (aten.maximum.default, aten.minimum.default), limits, strict=False
            ):
                new = new if limit is None else graph.add_call(op, new, limit)
        assert isinstance(new, fx.Node)
        new.meta["custom"] = node.meta["custom"]
        graph.replace(node, new)


def convert(
    graph: Graph,
    lowered: Lowered,
    opset: int,
    float_bits: int,
    names: Mapping[str, str],
    package: Path,
) -> Any:
    """Write a package, and return its model description.

    Args:
        graph: The quantized graph.
        lowered: The same, from ``lower``.
        opset: 16, 17 or 18, as iOS counts.
        float_bits: In which the program computes.
        names: Core ML's names of inputs and outputs by the graph's.
        package: The ``.mlpackage``, which must not exist.

    Raises:
        UnsupportedError: coremltools has a converter for each op, but not for what one of them is given.
    """
    ct = load_coremltools()
    register()
    pipeline = ct.PassPipeline.DEFAULT
    dropped = [*DROPPED_PASSES, *(STREAMED_DROPPED_PASSES if graph.weights.stored else ())]
    pipeline.remove_passes([p for p in dropped if p in pipeline.passes])
    precision = ct.precision.FLOAT16 if float_bits == 16 else ct.precision.FLOAT32
    try:
        with quiet():
            model = ct.convert(
                lowered.program,
                inputs=_inputs(ct, graph, names),
                outputs=_output_types(ct, graph, names),
                convert_to="mlprogram",
                minimum_deployment_target=getattr(ct.target, f"iOS{opset}"),
                compute_precision=precision,
                pass_pipeline=pipeline,
                classifier_config=_classifier(ct, graph),
                skip_model_load=True,
                package_dir=str(package),  # else it lies in the temporary folder until Python ends
            )
            return model.get_spec()
    except (ValueError, NotImplementedError, TypeError) as error:
        if not raised_by(error, "coremltools"):
            raise
        raise UnsupportedError(f"coremltools cannot convert this model: {error}") from error


def _inputs(ct: Any, graph: Graph, names: Mapping[str, str]) -> list[Any]:
    ranges: dict[str, Any] = {}
    return [_input(ct, graph, name, input_name(names, name), ranges) for name in graph.inputs]


def _input(ct: Any, graph: Graph, name: str, called: str, ranges: dict[str, Any]) -> Any:
    example, shape = graph.inputs[name], _shape(ct, graph, name, ranges)
    if (image := graph.interface.images.get(name)) is not None:
        color = getattr(ct.colorlayout, image.color)
        bias = image.bias[0] if image.color == "GRAYSCALE" else list(image.bias)
        return ct.ImageType(
            name=called, shape=shape, scale=image.scale, bias=bias, color_layout=color
        )
    dtype = np.float32 if example.is_floating_point() else np.int32
    return ct.TensorType(name=called, shape=shape, dtype=dtype)


def _shape(ct: Any, graph: Graph, name: str, ranges: dict[str, Any]) -> Any:
    """Return the shapes that an input may have; axes of one name share one symbol."""
    example, free = graph.inputs[name].shape, graph.dynamic.get(name, {})
    if (chosen := graph.interface.shapes.get(name)) is not None:
        default = tuple(example) if tuple(example) in chosen else chosen[0]
        return ct.EnumeratedShapes(shapes=[list(s) for s in chosen], default=list(default))
    sizes = []
    for axis, size in enumerate(example):
        if (dim := free.get(axis)) is not None:
            if dim.name not in ranges:
                ranges[dim.name] = ct.RangeDim(dim.min, dim.max, default=size, symbol=dim.name)
            size = ranges[dim.name]
        sizes.append(size)
    return ct.Shape(sizes)


def _output_types(ct: Any, graph: Graph, names: Mapping[str, str]) -> list[Any]:
    (output,) = graph.module.graph.find_nodes(op="output")
    return [
        ct.TensorType(name=output_name(names, name), dtype=_io_dtype(node))
        for name, node in zip(graph.outputs, output.args[0], strict=True)
    ]


def _io_dtype(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return np.float32 if isinstance(value, torch.Tensor) and value.is_floating_point() else np.int32


def _classifier(ct: Any, graph: Graph) -> Any:
    labels = graph.interface.labels
    return ct.ClassifierConfig(list(labels)) if labels else None
