"""``qcompile check``: the plan of all builds; a process a model, and nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qcompile.compiler.matrix import lock, processes
from qcompile.compiler.matrix.cells import Cell, chosen
from qcompile.compiler.matrix.read import Project
from qcompile.compiler.matrix.remembered import DURATIONS, recall
from qcompile.compiler.matrix.state import states

_NOTHING = {"format": None, "precision": None, "artifact_bytes": None, "peak_ram_bytes": None,
            "token_ms": None,
            "max_size": None, "note": "", "error": ""}  # fmt: skip


def plan(project: Project, *, only: Sequence[str] = (), jobs: int = 1) -> list[dict[str, Any]]:
    """Return a row a build: format, precision, predicted sizes, time, why it would be built, or an error.

    ``seconds`` are those of the last time that the build went well here.

    Raises:
        ProjectError: The lock is damaged, or ``only`` names nothing.
    """
    cells = chosen(project.cells, only)
    why = {s.cell.name: s.why for s in states(project, lock.read(project.root))}
    taken = recall(DURATIONS)
    found: dict[str, dict[str, Any]] = {}
    requests = [(path, _request(path, cells)) for path in dict.fromkeys(c.path for c in cells)]
    for path, result in processes.run(requests, project.root, jobs=jobs, told=lambda *_: None):
        for cell in cells:
            if cell.path == path:
                failed = {"error": result.get("error", "")}
                found[cell.name] = result["rows"][cell.name] if "rows" in result else failed
    return [
        {
            "name": c.name,
            "model": c.model,
            "target": c.target,
            "why": why[c.name],
            "seconds": taken.get(str(project.bundle(c).absolute())),
            **_NOTHING,
            **found[c.name],
        }
        for c in cells
    ]


def _request(path: str, cells: Sequence[Cell]) -> dict[str, Any]:
    flags = {cell.name: dict(cell.flags) for cell in cells if cell.path == path}
    return {"verb": "plan", "path": path, "flags": flags}
