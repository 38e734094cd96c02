"""Builds as tasks of Ray.

A task is a process of ``worker.py`` (``ray_task.py``), so its bytes are those of a local build. Ray begins
a task anew whose worker it lost; the process of a lost one ends by itself, and its work is in no bundle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.compiler.matrix import lock, ray_task
from qcompile.compiler.matrix.processes import SECONDS_TO_END, Told
from qcompile.compiler.matrix.ray_cluster import connected, first_line
from qcompile.runtime.manifest import FILE, file_sha256

_SECONDS_BETWEEN = 0.5
_RETRIES = 3
Requests = deque[tuple[str, Mapping[str, Any]]]


def run(
    requests: Iterable[tuple[str, Mapping[str, Any]]],
    root: Path,
    *,
    jobs: int,
    told: Told,
    keep_open: Iterable[int] = (),
    address: str | None = None,
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """Give each request's result as it comes; see ``executor.Executor``.

    Args:
        requests: By name.
        root: Folder that they run in, which all machines of the cluster see.
        jobs: How many run at once, if the cluster has room.
        told: Told what workers report, by name.
        keep_open: Not used: no file can be kept open on other machines.
        address: Of the cluster; ``RAY_ADDRESS`` by default, and without it Ray is started on this machine.

    Raises:
        OutputError: The cluster cannot be reached, or Ray cannot be started.
    """
    waiting = deque(requests)
    if waiting:
        with connected(address, jobs) as ray:
            yield from _Tasks(ray, root, jobs, told).run(waiting)


@dataclass
class _Tasks:
    ray: Any
    root: Path
    jobs: int
    told: Told
    running: dict[Any, str] = field(default_factory=dict)
    begun: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        options = {"num_cpus": _cpus_of_one(self.ray, self.jobs), "max_retries": _RETRIES,
                   "retry_exceptions": [ray_task.LostError], "scheduling_strategy": "SPREAD"}  # fmt: skip
        self._task = self.ray.remote(ray_task.build).options(**options)
        board = self.ray.remote(ray_task.Board)
        self._board = board.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()

    def run(self, waiting: Requests) -> Iterator[tuple[str, dict[str, Any]]]:
        """Give results; on the way out, tasks that still run are interrupted."""
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.jobs:
                    self.submit(*waiting.popleft())
                ready, _ = self.ray.wait(list(self.running), timeout=_SECONDS_BETWEEN)
                self.listen()
                for task in ready:
                    name = self.running.pop(task)
                    yield name, self.result(task)
        finally:
            self.cancel()

    def submit(self, name: str, request: Mapping[str, Any]) -> None:
        basis = lock.basis(self.root, request["flags"])
        self.running[self._task.remote(name, request, str(self.root), basis, self._board)] = name

    def listen(self) -> None:
        """Pass on what tasks said; what was said before a task ended is heard before its result."""
        for name, said in self.ray.get(self._board.take.remote()):
            if said.get("stage") == "start" and name in self.begun:
                said = {"note": "its worker was lost: it begins anew"}
            self.begun.add(name)
            self.told(name, said)

    def result(self, task: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:
            return {"result": "failed", "error": first_line(error.cause)}
        except self.ray.exceptions.RayError as error:
            lost = f"its Ray worker was lost {_RETRIES + 1} times"
            return {"result": "failed", "error": f"{lost}: {first_line(error)}"}
        return self.seen(found)

    def seen(self, found: dict[str, Any]) -> dict[str, Any]:
        """Return a result; it failed if its bundle was written where this machine does not see it."""
        if found["result"] != "built":
            return found
        manifest = self.root / found["bundle"] / FILE
        if manifest.is_file() and file_sha256(manifest) == found["sha256"]:
            return found
        lacking = f"worker {found['host']} wrote {found['bundle']}, and it is not to be seen here"
        return {"result": "failed", "error": f"{lacking}: {ray_task.SHARED}"}

    def cancel(self) -> None:
        """Interrupt tasks, which tidy up; end those that take long."""
        tasks = list(self.running)
        for task in tasks:
            self.ray.cancel(task)
        if tasks:
            _, slow = self.ray.wait(tasks, num_returns=len(tasks), timeout=SECONDS_TO_END + 5)
            for task in slow:
                self.ray.cancel(task, force=True)


def _cpus_of_one(ray: Any, jobs: int) -> int:
    """Return the CPUs, which are threads too, of each of so many builds on the cluster as it is now."""
    nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    cpus = [int(count) for count in nodes if count >= 1]
    return max(1, min(cpus) // -(-jobs // len(cpus))) if cpus else 1
