"""Error engine of TVM libraries: what each kernel stores against what the quantized graph says.

The same lowered graph is compiled once more with every kernel's codes as an output, for the same target.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import QUANTIZE, aten
from qcompile.targets.forced import ForcedRun, float_row
from qcompile.targets.tvm import cuda, program, stand_in
from qcompile.targets.tvm.codes import TO_FIRST
from qcompile.targets.tvm.engine import run_bundle
from qcompile.targets.tvm.lower import lower
from qcompile.targets.tvm.machine import Machine


def engine_errors(
    graph: Graph, machine: Machine, folder: Path, inputs: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return, for each quantized value and each output, how the library's differs.

    Args:
        graph: The quantized graph.
        machine: That it was built for.
        folder: The bundle, with the program in it.
        inputs: numpy arrays by name.
    """
    machine = machine if machine.gpu is None or cuda.has_gpu() else machine.stand_in
    probe = graph.copy()
    names = _show_codes(probe)
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        program.build_library(probe, machine, work / stand_in.LIBRARY)
        stand_in.write_manifest(probe, machine.options(), work)
        given = [inputs[n] for n in graph.inputs]
        found = run_bundle(folder, work, machine.options(), given)
    codes = dict(zip(names, found[len(graph.outputs) :], strict=True))
    forced = {
        node: torch.from_numpy(codes[node.args[0].name])
        for node in graph.calls(QUANTIZE)
        if isinstance(node.args[0], fx.Node) and node.args[0].name in codes
    }
    run = ForcedRun(graph, forced)
    with torch.no_grad():
        outputs = run.run(*(torch.from_numpy(np.array(inputs[n])) for n in graph.inputs))
    for name, expected, value in zip(graph.outputs, outputs, found, strict=False):
        run.rows.append(float_row(name, expected, torch.from_numpy(value)))
    return run.rows


def _show_codes(graph: Graph) -> list[str]:
    """Lower the graph and make every stored value an output, channels first; return their names."""
    stored = lower(graph)
    nodes = {n.name: n for n in graph.nodes}
    (output,) = graph.module.graph.find_nodes(op="output")
    shown, names = list(output.args[0]), []
    with graph.before(output):
        for name, codes in stored.items():
            node = nodes[codes.node]
            value = graph.add_call(aten.permute.default, node, TO_FIRST) if codes.is_last else node
            shown.append(value)
            names.append(name)
    output.args = (tuple(shown),)
    graph.outputs = (*graph.outputs, *(f"codes_{i}" for i in range(len(names))))
    return names
