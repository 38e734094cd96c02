"""Proof of a library for a GPU where there is none: its Relax module, compiled for the CPU beside it.

Same graph, same constants, same kernels on codes, with loops for the threads; what differs is how TVM's own
operators are given to threads, and the compiler.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.graph import Graph
from qcompile.targets import signature
from qcompile.targets.tvm import program
from qcompile.targets.tvm.machine import Machine

FOLDER = "check"
PROOF = {
    "engine": "the same Relax module, compiled for the CPU (no GPU here)",
    "proves": "what was compiled for the GPU computes what the quantized graph does, its threads one by one",
    "does_not_prove": "NVIDIA's compiler, the threads of TVM's own operators, and how fast it is; "
    "run `qcompile verify` where there is a GPU",
}


def build(graph: Graph, machine: Machine, folder: Path) -> None:
    """Write ``check/`` into a bundle's folder: the library for the CPU, which apps leave out.

    Args:
        graph: Lowered.
        machine: The GPU's machine.
        folder: Of the bundle.
    """
    check = folder / FOLDER
    check.mkdir()
    program.build_library(graph, machine.stand_in, check / program.LIBRARY)
    write_manifest(graph, machine.stand_in.options(), check)


def write_manifest(graph: Graph, options: Mapping[str, Any], folder: Path) -> None:
    """Write as much of a manifest as the C++ program reads."""
    data = {
        "inputs": [asdict(i) for i in signature.inputs(graph)],
        "outputs": [asdict(o) for o in signature.outputs(graph)],
        "files": {},
        "parity": {},
        "artifact": program.LIBRARY,
        "engine": {"name": "tvm", "options": options},
    }
    text = json.dumps(data, indent=2, sort_keys=True)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
