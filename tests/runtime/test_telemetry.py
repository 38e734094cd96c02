"""ONNX Runtime tells nobody what is run: it writes the identifiers that it would send nowhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import {first}
import onnxruntime
from onnx import TensorProto, helper
values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnxruntime.InferenceSession(model.SerializeToString()).run(None, {{"x": [1.0]}})
"""


@pytest.mark.parametrize("first", ["qcompile.runtime", "qcompile.compiler.cli.common"])
def test_nothing_is_written(tmp_path: Path, first: str) -> None:
    pytest.importorskip("onnxruntime")
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-P", "-c", _RUN.format(first=first)]
    subprocess.run(command, env=environment, check=True)
    assert os.listdir(tmp_path) == []
