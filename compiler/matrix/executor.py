"""Where the processes of builds run: here (``processes.run``), or on a Ray cluster (``ray_executor.py``)."""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qcompile.compiler.matrix import processes, ray_cluster, ray_executor
from qcompile.compiler.matrix.processes import Told

LOCAL = "local"


class Executor(Protocol):
    """Runs a process (``worker.py``) for each request; its bytes do not depend on where."""

    def __call__(
        self,
        requests: Iterable[tuple[str, Mapping[str, Any]]],
        root: Path,
        *,
        jobs: int,
        told: Told,
        keep_open: Iterable[int] = (),
    ) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """Give each request's result as it comes; closed early, it leaves no process.

        Args:
            requests: By name.
            root: Folder that they run in.
            jobs: How many run at once.
            told: Told what workers report, by name.
            keep_open: Files that stay open until the last worker of this machine has ended: a lock.

        Raises:
            OutputError: A process cannot be started.
        """


def executor(name: str, ray_address: str | None = None) -> Executor:
    """Return what runs builds.

    Args:
        name: ``local`` or ``ray``.
        ray_address: Of a cluster; ``RAY_ADDRESS`` by default, and a Ray of this machine without it.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    if name == LOCAL:
        return processes.run
    ray_cluster.check_installed()
    return functools.partial(ray_executor.run, address=ray_address)
