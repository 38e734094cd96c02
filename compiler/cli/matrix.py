"""What ``build`` without MODEL and ``check`` print: tables for people, data for machines."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json
from qcompile.compiler.matrix import build as builds
from qcompile.compiler.matrix.build import Listener, Outcome
from qcompile.compiler.matrix.executor import Executor
from qcompile.compiler.matrix.read import read
from qcompile.compiler.matrix.schema import FILE
from qcompile.compiler.stages.options import CacheOptions


def build(
    config: Path | None,
    only: Sequence[str],
    *,
    jobs: int,
    executor: Executor,
    locked: bool,
    force: bool,
    cache: CacheOptions,
    as_json: bool,
) -> None:
    """Build what changed; the exit code is 0, 1 (a gate refused something) or 2 (something was not built)."""
    project = read(config or Path(FILE))
    with Display(quiet=as_json) as display:
        outcomes = builds.build(
            project,
            only=only,
            jobs=jobs,
            locked=locked,
            force=force,
            cache=cache,
            listener=display.listener(),
            executor=executor,
        )
    if as_json:
        print_json(
            {"builds": [outcome_data(o) for o in outcomes], "passed": all(o.good for o in outcomes)}
        )
    else:
        outcome_table(outcomes)
    sys.exit(exit_code(outcomes))


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """Return the worst of the builds' own."""
    results = {o.result for o in outcomes}
    if results & {builds.FAILED, builds.STOPPED}:
        return 2
    return 1 if builds.GATE in results else 0


def outcome_table(outcomes: Sequence[Outcome]) -> None:
    """Print a row a build, and what went wrong."""
    table = Table("build", "result", "bytes", "seconds", "bundle", box=None, pad_edge=False)
    for outcome in outcomes:
        seconds = "" if outcome.seconds is None else f"{outcome.seconds:.1f}"
        row = (outcome.cell.name, outcome.result, _bytes(size(outcome)), seconds, outcome.bundle)
        table.add_row(*map(escape, row))
    console().print(table)
    for outcome in outcomes:
        if outcome.error:
            click.echo(f"{outcome.cell.name}: {outcome.error}", err=True)
    if stopped := [o for o in outcomes if o.result == builds.STOPPED]:
        done = sum(o.good for o in outcomes)
        click.echo(f"error: interrupted: {done} of {len(outcomes)} bundles are finished; the next build "
                   f"goes on with the other {len(stopped)}", err=True)  # fmt: skip


def outcome_data(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as data."""
    manifest = outcome.manifest
    return {
        "name": outcome.cell.name,
        "model": outcome.cell.model,
        "target": outcome.cell.target,
        "precision": manifest.precision if manifest else outcome.cell.precision,
        "result": outcome.result,
        "why": outcome.why,
        "error": outcome.error,
        "bundle": outcome.bundle,
        "artifact_bytes": size(outcome),
        "gates": list(manifest.gates) if manifest else [],
        "seconds": outcome.seconds,
        "shared": list(outcome.shared),
    }


def size(outcome: Outcome) -> int | None:
    """Return the bytes of the artifact, as its manifest says."""
    found = outcome.manifest.sizes.get("artifact_bytes") if outcome.manifest else None
    return found if isinstance(found, int) else None


def plan_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a row a build that could be made, and what stands against the others; no empty column."""
    shown = [_plan_cells(row) for row in rows if not row["error"]]
    names = [n for n in (shown[0] if shown else ()) if any(cells[n] for cells in shown)]
    table = Table(*names, box=None, pad_edge=False)
    for cells in shown:
        table.add_row(*(escape(cells[name]) for name in names))
    console().print(table)
    for row in rows:
        if row["error"]:
            click.echo(f"error: {row['name']}: {row['error']}", err=True)


def _plan_cells(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "build": row["name"],
        "format": row["format"],
        "precision": row["precision"],
        "artifact bytes": _bytes(row["artifact_bytes"], "about ") or _limit(row),
        "peak bytes": _bytes(row["peak_ram_bytes"], "about "),
        "token": "" if row["token_ms"] is None else f"at least {row['token_ms']:.3g} ms",
        "last built in": "" if row["seconds"] is None else f"{row['seconds']:.1f} s",
        "state": row["why"] or builds.CURRENT,
    }


def _limit(row: Mapping[str, Any]) -> str:
    return f"at most {row['max_size']:,}" if row["max_size"] else str(row["note"])


def _bytes(count: int | None, about: str = "") -> str:
    return "" if count is None else f"{about}{count:,}"


class Display:
    """Lines on stderr for what begins and ends; at a terminal also the stages of what runs."""

    def __init__(self, *, quiet: bool) -> None:
        self._out = Console(stderr=True, quiet=quiet, highlight=False)
        self._stages: dict[str, str] = {}
        self._status = (
            Status("", console=self._out) if self._out.is_terminal and not quiet else None
        )

    def __enter__(self) -> Display:
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status:
            self._status.stop()

    def listener(self) -> Listener:
        """Return what is to be told."""
        return Listener(self._started, self._said, self._finished)

    def _started(self, name: str, why: str) -> None:
        self._line(f"{name}: begins ({why or '--force'})")
        self._show(name, "start")

    def _said(self, name: str, said: Mapping[str, Any]) -> None:
        if "note" in said:
            self._line(f"{name}: note: {said['note']}")
        else:
            self._show(name, said["stage"])

    def _finished(self, outcome: Outcome) -> None:
        self._stages.pop(outcome.cell.name, None)
        seconds = "" if outcome.seconds is None else f" in {outcome.seconds:.1f} s"
        self._line(f"{outcome.cell.name}: {outcome.result}{seconds}")

    def _line(self, text: str) -> None:
        self._out.print(text, markup=False, soft_wrap=True)

    def _show(self, name: str, stage: str) -> None:
        self._stages[name] = stage
        if self._status:
            self._status.update(escape(", ".join(f"{n}: {s}" for n, s in self._stages.items())))
