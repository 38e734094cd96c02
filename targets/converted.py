"""What a converter wrote for a graph, kept: converting is slow, and the same for many devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.cache import StageCache
from qcompile.compiler.stages.entry import Entry
from qcompile.compiler.stages.keys import graph_digest, stage_key


def converted(
    stages: StageCache,
    stage: str,
    graph: Graph,
    artifact: Path,
    make: Callable[[], Any],
    *,
    packages: tuple[str, ...],
    options: Any = None,
) -> Any:
    """Let an artifact be written, or write the files that were written for an equal graph.

    Args:
        stages: Where they are kept.
        stage: Name of the conversion.
        graph: What is converted. One that reads constants from files is converted each time.
        artifact: The file or folder.
        make: Writes it; returns what else is to be known, as JSON holds it.
        packages: Whose versions the bytes depend on.
        options: What else they depend on, as JSON holds it.

    Returns:
        What ``make`` returns.
    """
    if not stages or graph.weights.stored:
        return make()
    versions, said = [version(p) for p in packages], asdict(graph.interface)
    key = stage_key(stage, graph_digest(graph), said, list(graph.outputs), versions, options)
    if (known := stages.get(stage, key)) is not None:
        _write(artifact, known.tensors)
        return known.facts
    facts = make()
    stages.put(stage, key, Entry(_read(artifact), facts))
    return facts


def _read(artifact: Path) -> dict[str, Tensor]:
    """Return the bytes of files, by their path in the artifact; of a single file by ``.``."""
    files = [f for f in artifact.rglob("*") if f.is_file()] if artifact.is_dir() else [artifact]
    return {
        f.relative_to(artifact).as_posix(): torch.from_numpy(np.fromfile(f, dtype=np.uint8))
        for f in files
    }


def _write(artifact: Path, files: Mapping[str, Tensor]) -> None:
    for name, data in files.items():
        file = artifact / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data.numpy().tofile(file)
        file.chmod(0o644)
