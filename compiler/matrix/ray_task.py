"""What a Ray worker does for a build: it runs the same process as a local build does."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from qcompile.compiler.matrix import lock, processes

SHARED = "the project's folder must be the same shared storage on all machines of the cluster"
_SAME = "install the same on all machines of the cluster"
Said = tuple[str, Mapping[str, Any]]


class LostError(Exception):
    """The system killed a build's process, as it may not on another machine."""


class Board:
    """An actor to which tasks report, and which whoever asked for them reads."""

    def __init__(self) -> None:
        self._said: list[Said] = []

    def put(self, name: str, said: Mapping[str, Any]) -> None:
        """Report something."""
        self._said.append((name, said))

    def take(self) -> list[Said]:
        """Return what was reported since the last time."""
        said, self._said = self._said, []
        return said


def build(
    name: str, request: Mapping[str, Any], root: str, basis: lock.Basis, board: Any
) -> dict[str, Any]:
    """Build, and return the result.

    Args:
        name: Of the build.
        request: To ``worker.py``.
        root: The project's folder.
        basis: What a build rests on, on the machine that asks for it.
        board: The actor.

    Raises:
        LostError: The process was killed.
    """
    import ray

    def told(name: str, said: Mapping[str, Any]) -> None:
        ray.get(board.put.remote(name, said))

    host = socket.gethostname()
    if not Path(root).is_dir():
        return _failed(f"there is no {root} on worker {host}: {SHARED}")
    if unlike := _unlike(basis, lock.basis(Path(root), request["flags"])):
        return _failed(f"worker {host} is another one: {', '.join(unlike)}; {_SAME}")
    with closing(processes.run([(name, request)], Path(root), jobs=1, told=told)) as results:
        _, result = next(results)
    if result.get("killed"):
        raise LostError(result["error"])
    return result | {"bundle": request["bundle"], "host": host}


def _failed(error: str) -> dict[str, Any]:
    return {"result": "failed", "error": error}


def _unlike(ours: lock.Basis, theirs: lock.Basis) -> list[str]:
    """Return what a worker's machine has otherwise."""
    found = lock.changes(ours.tools, theirs.tools)
    return found if ours.device == theirs.device else [*found, "the facts about the device"]
