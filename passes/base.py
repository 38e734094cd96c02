"""What a pass is, how it is run, and how it is found.

A pass is a frozen dataclass in a file of its own: ``passes/graph/fold_batch_norm.py`` holds the pass
``fold-batch-norm``. Its fields are its options. ``run`` rewrites a graph in place and returns how many
rewrites it made; the runner holds it to that.
"""

from __future__ import annotations

import importlib
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import qcompile.passes
from qcompile.compiler.ir.errors import PassError, QCompileError
from qcompile.compiler.ir.graph import Graph

FOLDERS = ("graph", "calibration", "quantization")


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph; a subclass is a frozen dataclass with a kebab-case ``name``."""

    name: ClassVar[str]

    def requires(self, graph: Graph) -> None:
        """Raise if the graph is not what this pass needs."""

    @abstractmethod
    def run(self, graph: Graph) -> int:
        """Rewrite in place; return the number of rewrites, 0 if and only if nothing changed."""

    def ensures(self, graph: Graph) -> None:
        """Raise if the graph is not what this pass promises."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Args:
        name: Of the pass.
        rewrites: How many it made.
        seconds: Wall time.
    """

    name: str
    rewrites: int
    seconds: float


@dataclass(frozen=True)
class RunOptions:
    """How passes are run.

    Args:
        check: Compare the IR text before and after with the count that the pass returned.
        dump: Folder that gets the IR text after each pass, ``03-fold-batch-norm.txt``.
        on_start: Told the name of each pass before it runs.
    """

    check: bool = True
    dump: Path | None = None
    on_start: Callable[[str], None] = lambda name: None


def run(
    graph: Graph, passes: Sequence[Pass], options: RunOptions | None = None
) -> list[PassRecord]:
    """Run passes in order.

    Raises:
        PassError: A pass failed, or its count does not fit what it did; the IR text is a note.
        QCompileError: What a pass raises for the user goes through as it is.
    """
    options = options or RunOptions()
    done: list[PassRecord] = []
    if options.dump is not None:
        options.dump.mkdir(parents=True, exist_ok=True)
        _dump(graph, options.dump / "00-input.txt")
    for current in passes:
        options.on_start(current.name)
        done.append(_run_one(graph, current, done, options.check))
        if options.dump is not None:
            _dump(graph, options.dump / f"{len(done):02}-{current.name}.txt")
    return done


def find(name: str) -> type[Pass]:
    """Return the pass class of this name.

    Raises:
        KeyError: There is none; lists those that there are.
    """
    for module in _modules():
        if _pass_name(module) == name and (found := _pass_of(module)) is not None:
            return found
    raise KeyError(f"no pass {name!r}; there are: {', '.join(names())}")


def names() -> list[str]:
    """Return the names of all passes, sorted."""
    return sorted(_pass_name(module) for module in _modules() if _pass_of(module) is not None)


def _modules() -> list[str]:
    root = Path(qcompile.passes.__file__).parent
    return [
        f"qcompile.passes.{folder}.{module.name}"
        for folder in FOLDERS
        for module in pkgutil.iter_modules([str(root / folder)])
    ]


def _pass_name(module: str) -> str:
    return module.rsplit(".", 1)[1].replace("_", "-")


def _pass_of(module: str) -> type[Pass] | None:
    """Return the pass that a module is named after, whatever others it imports."""
    for value in vars(importlib.import_module(module)).values():
        is_pass = isinstance(value, type) and issubclass(value, Pass)
        if is_pass and vars(value).get("name") == _pass_name(module):
            found: type[Pass] = value
            return found
    return None


def _run_one(graph: Graph, current: Pass, done: Sequence[PassRecord], check: bool) -> PassRecord:
    before = graph.to_text() if check else ""
    start = time.perf_counter()
    try:
        current.requires(graph)
        rewrites = current.run(graph)
        graph.module.graph.lint()
        graph.module.recompile()
        current.ensures(graph)
        changed = graph.to_text() != before if check else bool(rewrites)
    except QCompileError:
        raise
    except Exception as error:
        earlier = ", ".join(record.name for record in done) or "none"
        message = f"pass {current.name!r} failed (passes before it: {earlier}): {error}"
        raise _with_text(PassError(message), graph) from error
    if changed != bool(rewrites):
        message = (
            f"pass {current.name!r} reported {rewrites} rewrites, but the graph says otherwise"
        )
        raise _with_text(PassError(message), graph)
    return PassRecord(current.name, rewrites, time.perf_counter() - start)


def _with_text(failure: PassError, graph: Graph) -> PassError:
    """Add the IR as a note; of a graph that has no text any more, why not."""
    try:
        failure.add_note(graph.to_text())
    except Exception as error:
        failure.add_note(f"the graph has no text: {type(error).__name__}: {error}")
    return failure


def _dump(graph: Graph, file: Path) -> None:
    file.write_text(graph.to_text(), encoding="utf-8")
