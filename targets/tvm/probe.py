"""Error engine of TVM libraries: what each kernel stores against what the quantized graph says.

The same lowered graph is compiled once more with what every kernel stores as an output, for the same target:
codes, and the floats of layers. A sum of float32 products in another order, with products that are not
rounded, is 130 dB from PyTorch's in the examples; the limit is that of Core ML's float32 programs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import QUANTIZE, aten
from qcompile.targets.forced import ForcedRun, float_row
from qcompile.targets.tvm import cuda, program, stand_in
from qcompile.targets.tvm.codes import TO_FIRST, Stored
from qcompile.targets.tvm.engine import run_bundle
from qcompile.targets.tvm.float_lower import lower_floats
from qcompile.targets.tvm.lower import lower
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.stored_weights import weight_rows

FLOAT_LIMIT_DB = 90.0
"""Of a layer's floats; see above."""


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
    codes, floats, weights = lower(probe), {}, []
    if machine.vectors is not None:
        floats = lower_floats(probe)
        weights = weight_rows(probe, machine.vectors, folder / program.LIBRARY)
    _show(probe, [*codes.values(), *floats.values()])  # one value may be in both
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        program.build_library(probe, machine, work / program.LIBRARY)
        stand_in.write_manifest(probe, machine.options(), work)
        given = [inputs[n] for n in graph.inputs]
        found = run_bundle(folder, work, machine.options(), given)
    shown = [torch.from_numpy(value) for value in found[len(graph.outputs) :]]
    stored = dict(zip(codes, shown[: len(codes)], strict=True))
    forced = {
        node: stored[node.args[0].name]
        for node in graph.calls(QUANTIZE)
        if isinstance(node.args[0], fx.Node) and node.args[0].name in codes
    }
    run = _Forced(graph, forced, dict(zip(floats, shown[len(codes) :], strict=True)))
    with torch.no_grad():
        outputs = run.run(*(torch.from_numpy(np.array(inputs[n])) for n in graph.inputs))
    for name, expected, value in zip(graph.outputs, outputs, found, strict=False):
        run.rows.append(float_row(name, expected, torch.from_numpy(value)))
    return [*run.rows, *weights]


class _Forced(ForcedRun):
    """Goes on from the engine's floats too, wherever a layer of the library gives them."""

    def __init__(
        self, graph: Graph, forced: Mapping[fx.Node, Tensor], floats: Mapping[str, Tensor]
    ) -> None:
        super().__init__(graph, forced)
        self.floats = floats

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.floats:
            return value
        found = self.floats[n.name]
        self.rows.append({**float_row(n.name, value, found), "limit_db": FLOAT_LIMIT_DB})
        return found


def _show(graph: Graph, stored: Sequence[Stored]) -> None:
    """Make every stored value of a lowered graph an output, channels first."""
    nodes = {n.name: n for n in graph.nodes}
    (output,) = graph.module.graph.find_nodes(op="output")
    shown = list(output.args[0])
    with graph.before(output):
        for found in stored:
            node = nodes[found.node]
            value = graph.add_call(aten.permute.default, node, TO_FIRST) if found.is_last else node
            shown.append(value)
    output.args = (tuple(shown),)
    graph.outputs = (*graph.outputs, *(f"stored_{i}" for i in range(len(stored))))
