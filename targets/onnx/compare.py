"""Error engine, value by value: what ONNX Runtime stores against what the quantized graph says.

A quantized network amplifies the smallest difference: a sum that is off by 1e-7 may round to the next
code, and fifty layers later half of all codes differ by one. So each stored value is compared with what
the graph makes of the *engine's own* values before it; every op is judged alone, and the first wrong one
is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcompile.compiler.ir.errors import PassError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import QUANTIZE
from qcompile.targets.forced import ForcedRun, float_row


def engine_errors(
    graph: Graph, model: Path, engine: Mapping[str, Any], inputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return, for each quantized value and each output, how the engine's differs.

    Args:
        graph: The quantized graph.
        model: The artifact.
        engine: As in the manifest.
        inputs: numpy arrays by name.

    Returns:
        Rows ``name``, ``values``, ``differing`` (share of codes), ``largest`` (in codes, or absolute for
        float outputs), ``sqnr_db`` for float outputs; in the order of the graph.
    """
    codes = _probe(model, engine, inputs)
    quantizers = graph.calls(QUANTIZE)
    if len(codes.quantized) != len(quantizers):
        raise PassError(
            f"the artifact has {len(codes.quantized)} quantizers, the graph {len(quantizers)}"
        )
    forced = {
        node: torch.from_numpy(v) for node, v in zip(quantizers, codes.quantized, strict=True)
    }
    run = ForcedRun(graph, forced)
    tensors = [torch.from_numpy(np.array(inputs[name])) for name in graph.inputs]
    with torch.no_grad():
        outputs = run.run(*tensors)
    for name, expected, found in zip(graph.outputs, outputs, codes.outputs, strict=True):
        run.rows.append(float_row(name, expected, torch.from_numpy(found)))
    return run.rows


class _Codes:
    def __init__(self, quantized: list[Any], outputs: list[Any]) -> None:
        self.quantized, self.outputs = quantized, outputs


def _probe(model: Path, engine: Mapping[str, Any], inputs: Mapping[str, Any]) -> _Codes:
    """Run the model with every QuantizeLinear's codes as an output too."""
    import onnx_ir
    import onnxruntime

    program = onnx_ir.load(model)
    outputs = [str(value.name) for value in program.graph.outputs]
    extra = [n.outputs[0] for n in program.graph if n.op_type == "QuantizeLinear"]
    for value in extra:
        if value not in program.graph.outputs:
            program.graph.outputs.append(value)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level, settings.intra_op_num_threads = 3, 1
    for key, option in sorted(engine["options"].items()):
        settings.add_session_config_entry(key, str(option))
    _declare_types(extra, program)
    serialized = onnx_ir.to_proto(program).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, settings, providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in extra]
    found = dict(
        zip([*names, *outputs], session.run([*names, *outputs], dict(inputs)), strict=True)
    )
    return _Codes([found[n] for n in names], [found[n] for n in outputs])


def _declare_types(values: list[Any], program: Any) -> None:
    import onnx_ir

    for value in values:
        zero_point = value.producer().inputs[2]
        kind = onnx_ir.DataType.UINT8 if zero_point is None else zero_point.dtype
        value.type = onnx_ir.TensorType(kind or zero_point.const_value.dtype)
