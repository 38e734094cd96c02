"""``qcompile build`` without MODEL: what is not as it should be is built, a process each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.ir.folder_lock import lock_folder
from qcompile.compiler.matrix import lock, processes
from qcompile.compiler.matrix.cells import Cell, chosen
from qcompile.compiler.matrix.executor import Executor
from qcompile.compiler.matrix.read import Project
from qcompile.compiler.matrix.remembered import DURATIONS, remember
from qcompile.compiler.matrix.state import State, refuse_drift, states
from qcompile.compiler.stages.options import WITHOUT_CACHE, CacheOptions
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.manifest import read as read_manifest

_SECONDS_TO_WAIT = 15
CURRENT, BUILT, GATE, FAILED, STOPPED = "up to date", "built", "gate", "failed", "stopped"


@dataclass(frozen=True)
class Outcome:
    """What became of a build.

    Args:
        cell: The build.
        result: ``up to date``, ``built``, ``gate``: a gate refused it, ``failed``: it could not be made,
            or ``stopped``: it was interrupted or not begun.
        bundle: Its folder, relative to the project's; that of a refused one if ``result`` is ``gate``.
        manifest: Of the bundle; ``None`` if there is none.
        why: Why it was built; empty if it is up to date.
        error: What went wrong.
        seconds: That it took.
        shared: Stages that it found in the cache.
    """

    cell: Cell
    result: str
    bundle: str
    manifest: Manifest | None = None
    why: str = ""
    error: str = ""
    seconds: float | None = None
    shared: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether the bundle is there and within every gate."""
        return self.result in (CURRENT, BUILT)


@dataclass(frozen=True)
class Listener:
    """Callbacks.

    Args:
        started: Told builds that begin, by name, with why.
        said: Told the stages and notes of a build.
        finished: Told each outcome.
    """

    started: Callable[[str, str], None] = lambda name, why: None
    said: Callable[[str, Mapping[str, Any]], None] = lambda name, said: None
    finished: Callable[[Outcome], None] = lambda outcome: None


def build(
    project: Project,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    locked: bool = False,
    force: bool = False,
    cache: CacheOptions = WITHOUT_CACHE,
    listener: Listener | None = None,
    executor: Executor = processes.run,
) -> list[Outcome]:
    """Build what is not as it should be.

    Args:
        project: The builds.
        only: Names of models, targets or builds; all by default.
        jobs: How many builds run at once.
        locked: Refuse inputs that are not as pinned, and bundles that come out otherwise; write no lock.
        force: Build also what is up to date.
        cache: What builds have in common is computed once and kept there.
        listener: Told what happens.
        executor: Where builds run.

    Raises:
        ProjectError: The lock is damaged, ``only`` names nothing, or something drifted and is ``locked``.
        OutputError: Another process builds this project.
    """
    listener, cells = listener or Listener(), chosen(project.cells, only)
    with _held(project.root) as lock_file:
        entries = lock.read(project.root)
        found = [s for s in states(project, entries) if s.cell in cells]
        if locked:
            refuse_drift(found)
        todo = {s.cell.name: s for s in found if s.why or force}
        outcomes = {s.cell.name: _current(project, s) for s in found if s.cell.name not in todo}
        run = _Run(project, todo, listener, entries, locked, cache)
        outcomes |= run.all(executor, jobs, lock_file)
        if not locked:
            run.save()
    return [outcomes[s.cell.name] for s in found]


@dataclass
class _Run:
    project: Project
    todo: Mapping[str, State]
    listener: Listener
    entries: dict[str, lock.Entry]
    locked: bool
    cache: CacheOptions

    def all(self, executor: Executor, jobs: int, lock_file: int) -> dict[str, Outcome]:
        """Build; an interruption leaves the rest as stopped."""
        requests = [(name, self.request(s.cell)) for name, s in self.todo.items()]
        outcomes: dict[str, Outcome] = {}
        results = executor(
            requests, self.project.root, jobs=jobs, told=self.told, keep_open=[lock_file]
        )
        with suppress(KeyboardInterrupt), closing(results):
            for name, result in results:
                outcomes[name] = self.outcome(self.todo[name], result)
                self.listener.finished(outcomes[name])
        for name, state in self.todo.items():
            bundle = self.shown(state.cell)
            outcomes.setdefault(name, Outcome(state.cell, STOPPED, bundle, why=state.why))
        return outcomes

    def told(self, name: str, said: Mapping[str, Any]) -> None:
        if said.get("stage") == "start":
            self.listener.started(name, self.todo[name].why)
        else:
            self.listener.said(name, said)

    def request(self, cell: Cell) -> dict[str, Any]:
        return {
            "verb": "build",
            "path": cell.path,
            "bundle": self.shown(cell),
            "inputs": cell.inputs,
            "flags": dict(cell.flags),
            "cache": self.cache.as_json(),
        }

    def shown(self, cell: Cell) -> str:
        return os.path.relpath(self.project.bundle(cell), self.project.root)

    def outcome(self, state: State, said: Mapping[str, Any]) -> Outcome:
        """Return what became of a build; one that is good is pinned at once."""
        cell, bundle, error = state.cell, self.shown(state.cell), str(said.get("error", ""))
        result = str(said["result"])
        if result == BUILT:
            if self.locked and state.pinned and said["sha256"] != state.pinned.bundle:
                result, error = GATE, f"{bundle} is not the bundle that {lock.FILE} pins"
            else:
                error = self.pin(cell, said)
                folder = str(self.project.bundle(cell).absolute())
                remember(DURATIONS, {folder: said["seconds"]})
        elif result == GATE:
            bundle = str(said.get("rejected", ""))
        manifest = (
            _manifest(self.project.root / bundle) if result in (BUILT, GATE) and bundle else None
        )
        shared = tuple(said.get("shared", ()))
        return Outcome(
            cell, result, bundle, manifest, state.why, error, said.get("seconds"), shared
        )

    def pin(self, cell: Cell, said: Mapping[str, Any]) -> str:
        """Pin a build, unless an input changed while it ran; return what is to be said of that."""
        self.entries.pop(cell.name, None)
        if said["changed"]:
            text = f"{', '.join(said['changed'])} changed during the build: build it again"
        else:
            root = self.project.root
            self.entries[cell.name] = lock.entry(root, cell, said["files"], said["sha256"])
            text = ""
        if not self.locked:
            self.save()
        return text

    def save(self) -> None:
        """Write the lock if it would be another one: of builds that the file still has."""
        names = {cell.name for cell in self.project.cells}
        entries = {name: entry for name, entry in self.entries.items() if name in names}
        if entries != lock.read(self.project.root):
            lock.write(self.project.root, entries)


def _current(project: Project, state: State) -> Outcome:
    bundle = project.bundle(state.cell)
    shown = os.path.relpath(bundle, project.root)
    return Outcome(state.cell, CURRENT, shown, _manifest(bundle))


def _manifest(bundle: Path) -> Manifest | None:
    try:
        return read_manifest(bundle, check_files=False)
    except BundleError:
        return None


@contextmanager
def _held(root: Path) -> Iterator[int]:
    """Hold a project, which one process builds at a time; those that are ending are waited for.

    Raises:
        OutputError: Another process goes on building it.
    """
    end = time.monotonic() + _SECONDS_TO_WAIT
    while (opened := lock_folder(root)) is None:
        if time.monotonic() > end:
            raise OutputError("another process is building this project: wait until it is done")
        time.sleep(0.1)
    try:
        (root / f".{lock.FILE}.new").unlink(missing_ok=True)
        yield opened
    finally:
        os.close(opened)
