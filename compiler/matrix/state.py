"""Which builds are as they should be, and why the others are not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompile.compiler.ir.errors import ProjectError
from qcompile.compiler.matrix import lock
from qcompile.compiler.matrix.cells import Cell
from qcompile.compiler.matrix.digests import Digests
from qcompile.compiler.matrix.lock import Entry
from qcompile.compiler.matrix.read import Project
from qcompile.runtime.errors import BundleError
from qcompile.runtime.manifest import FILE, file_sha256
from qcompile.runtime.manifest import read as read_manifest

_TO_BUILD = "leave out --locked to build them, and commit the new lock"


@dataclass(frozen=True)
class State:
    """How a build stands.

    Args:
        cell: The build.
        pinned: What ``qcompile.lock`` says of it.
        drift: What is not as it is pinned.
        damage: What is wrong with its bundle.
    """

    cell: Cell
    pinned: Entry | None
    drift: tuple[str, ...] = ()
    damage: str = ""

    @property
    def why(self) -> str:
        """Why it must be built; empty if it need not."""
        if self.pinned is None:
            return "never built"
        return "; ".join(self.drift) or self.damage


def states(project: Project, entries: Mapping[str, Entry]) -> list[State]:
    """Return how each build of a project stands."""
    digests = Digests(project.root)
    return [_state(project, cell, entries.get(cell.name), digests) for cell in project.cells]


def refuse_drift(found: list[State]) -> None:
    """Refuse builds that are not as they are pinned, for ``--locked``.

    Raises:
        ProjectError: A line for each of them.
    """
    lines = [
        f"{s.cell.name} is not as in {lock.FILE}: {'; '.join(s.drift)}" for s in found if s.drift
    ]
    lines += [f"{s.cell.name} is not in {lock.FILE}" for s in found if s.pinned is None]
    if lines:
        raise ProjectError("\n".join([*sorted(lines), _TO_BUILD]))


def _state(project: Project, cell: Cell, pinned: Entry | None, digests: Digests) -> State:
    if pinned is None:
        return State(cell, None)
    drifted = lock.drift(project.root, cell, pinned, digests)
    damage = _damage(project.bundle(cell), pinned.bundle)
    return State(cell, pinned, tuple(drifted), damage)


def _damage(bundle: Path, sha256: str) -> str:
    """Return what is wrong with a bundle: its manifest's content, and the sizes of its files."""
    file = bundle / FILE
    if not file.is_file():
        return "its bundle is missing"
    if file_sha256(file) != sha256:
        return "its bundle is another one"
    try:
        sizes = {
            name: info.bytes
            for name, info in read_manifest(bundle, check_files=False).files.items()
        }
    except BundleError as error:
        return str(error)
    wrong = [n for n, size in sorted(sizes.items()) if not _has_size(bundle / n, size)]
    return f"its bundle was changed: {', '.join(wrong)}" if wrong else ""


def _has_size(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size
