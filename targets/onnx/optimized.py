"""What ONNX Runtime makes of a model: the ops of its optimized graph."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.onnx.capabilities import ENGINE_INTEGER_OPS, ENGINE_MOVES, WHY_FLOAT


def engine_ops(model: Path, options: Mapping[str, Any]) -> Counter[str]:
    """Return how often each op stands in the graph that the engine runs.

    Args:
        model: The .onnx file.
        options: Session configuration entries, as the bundle is run with.
    """
    import onnx_ir
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        for key, value in sorted(options.items()):
            settings.add_session_config_entry(key, str(value))
        room = shutil.disk_usage(folder).free
        if room < 4 * model.stat().st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
        try:
            onnxruntime.InferenceSession(str(model), settings, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0].replace(str(model), model.name)
            raise UnsupportedError(
                f"onnxruntime {onnxruntime.__version__} refuses the model: {reason}; "
                "try another precision, or rewrite that op in the model"
            ) from error
        graph = onnx_ir.load(settings.optimized_model_filepath).graph
        return Counter(node.op_type for node in graph)


def float_ops(model: Path, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the ops that compute in float, with the reason, sorted by name."""
    counts = engine_ops(model, options)
    if not any(op in ENGINE_INTEGER_OPS for op in counts):
        return []
    floats = sorted(op for op in counts if op not in ENGINE_INTEGER_OPS | ENGINE_MOVES)
    return [{"op": op, "count": counts[op], "why": _why(op)} for op in floats]


def _why(op: str) -> str:
    known = {k.replace("_", ""): v for k, v in WHY_FLOAT.items()}
    spelled = op.lower().replace("normalization", "norm").removeprefix("simplified")
    return known.get(spelled, "ONNX Runtime has no integer kernel for it")
