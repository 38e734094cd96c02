"""Keys of stages: SHA-256 of all that a result depends on, the code and the machine's arithmetic among it."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
from typing import Any

import torch

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.sources import own_digest


def stage_key(stage: str, *parts: Any) -> str:
    """Return the key of a stage, 64 hexadecimal digits.

    Args:
        stage: Its name.
        parts: What it works on, as JSON holds it.
    """
    said = [stage, own_digest(), torch.__version__, arithmetic(), *parts]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def graph_digest(graph: Graph) -> str:
    """Return the digest of a graph: its text, free axes and every constant, whole."""
    hashed = hashlib.sha256(graph.to_text().encode())
    hashed.update(repr(sorted((n, sorted(d.items())) for n, d in graph.dynamic.items())).encode())
    for name in graph.weights:
        hashed.update(f"{name} {graph.weights.sha256(name)}\n".encode())
    return hashed.hexdigest()


@functools.cache
def arithmetic() -> str:
    """Return on what the last bits of a sum depend: the processor's kind and its vector instructions."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
