"""Graph -> ``onnx_ir.Model`` through ``torch.onnx``, then the rewrites that ONNX Runtime wants."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from qcompile.compiler.ir.errors import MissingPackageError, UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.targets.onnx import blocks, rewrites
from qcompile.targets.onnx.registry import OPSET, quiet, registry

if TYPE_CHECKING:
    import onnx_ir


def export(graph: Graph) -> onnx_ir.Model:
    """Return the graph as an ONNX model with q/dq pairs, without paths or stack traces.

    Raises:
        MissingPackageError: The extra ``onnx`` is not installed.
        UnsupportedError: ``torch.onnx`` has no translation for some ops; names all of them.
    """
    try:
        import onnx_ir  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(error.name or "onnx", "onnx") from error
    from torch.onnx._internal.exporter import _core  # as torch.onnx.export, with a table of ours

    opset = max(OPSET, blocks.needed_opset(graph))
    with quiet():
        try:
            program = _core.export(
                graph.exported(),
                registry=registry(opset),
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                opset_version=opset,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UnsupportedError(_refusal(graph, error)) from error
    model: onnx_ir.Model = program.model
    _rename_inputs(model, graph)
    blocks.lower_blocks(model)
    rewrites.use_global_average_pool(model)
    rewrites.quantize_gemm_biases(model)
    rewrites.drop_zero_points(model)
    rewrites.strip(model)
    rewrites.shorten_names(model)
    return model


def _rename_inputs(model: onnx_ir.Model, graph: Graph) -> None:
    """Give free axes the names that the user gave them."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    for value, (name, _) in zip(model.graph.inputs, graph.inputs.items(), strict=True):
        for axis, dim in graph.dynamic.get(name, {}).items():
            assert value.shape is not None
            names[str(value.shape[axis])] = dim.name
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is not None:
            dims = [d if isinstance(d, int) else names.get(str(d), str(d)) for d in value.shape]
            value.shape = ir.Shape(dims)


def _refusal(graph: Graph, error: Exception) -> str:
    text = str(error)
    pattern = r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)"
    missing = sorted({".".join(match) for match in re.findall(pattern, text)})
    if not missing:
        lines = [line for line in text.splitlines() if line.strip()]
        return f"torch.onnx cannot translate the model: {lines[0] if lines else text}"
    places = {op: [n.name for n in graph.nodes if str(n.target) == op] for op in missing}
    listed = "; ".join(f"{op} (at {', '.join(at) or 'an inner op'})" for op, at in places.items())
    return f"ONNX has no form for {len(missing)} op(s) of this model: {listed}; rewrite them there"
