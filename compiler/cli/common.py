"""What the verbs share: errors as exit codes, ``--json``, sizes, the progress display."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from rich.console import Console, RenderableType
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from qcompile.compiler.matrix.sizes import size
from qcompile.runtime.errors import QCompileError

Function = TypeVar("Function", bound=Callable[..., Any])


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes: ``4GiB``, ``500MB``, ``1024``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            return size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_json_option = click.option("--json", "as_json", is_flag=True, help="Print data for machines.")
_debug_option = click.option("--debug", is_flag=True, help="Show a traceback with an error.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), default=lambda: os.cpu_count() or 1,
    show_default="all cores", help="Of llama.cpp.",
)  # fmt: skip


def reports_errors(function: Function) -> Function:
    """Turn errors into one sentence on stderr and an exit code; with ``--json``, into data.

    Adds ``--json``, which the function gets as ``as_json``, and ``--debug``.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, debug: bool = False, **options: Any) -> Any:
        try:
            return function(*args, **options)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                raise
            sys.exit(report(error, as_json=options.get("as_json", False)))

    return _json_option(_debug_option(wrapped))  # type: ignore[return-value]


def report(error: BaseException, *, as_json: bool) -> int:
    """Print an error; return its exit code."""
    from qcompile.compiler.ir.errors import BudgetError, GateError

    data: dict[str, Any] = {"error": _message(error), "exit_code": 2}
    if isinstance(error, GateError):
        data["exit_code"] = 1
        if error.bundle is not None:
            data["bundle"] = str(error.bundle.path)  # type: ignore[attr-defined]
            data["gates"] = list(error.bundle.manifest.gates)  # type: ignore[attr-defined]
    if isinstance(error, BudgetError):
        data["nearest"] = list(error.nearest)
    if as_json:
        print_json(data)
    else:
        for line in data["error"].splitlines():
            click.echo(f"error: {line}", err=True)
    return int(data["exit_code"])


def _message(error: BaseException) -> str:
    if isinstance(error, QCompileError):
        return str(error)
    if isinstance(error, click.UsageError):
        verb = error.ctx.command_path if error.ctx else "qcompile"
        return f"{error.format_message().rstrip('.')}; see `{verb} --help`"
    if isinstance(error, KeyboardInterrupt):
        kept = f"; {error}" if str(error) else ""
        return f"interrupted; no bundle was written or changed{kept}"
    text = (str(error).splitlines() or [""])[0]
    return (
        f"qcompile failed ({type(error).__name__}: {text}); this is a defect: run it again with "
        "--debug and report what it prints"
    )


def print_json(data: Any) -> None:
    """Print data with sorted keys."""
    click.echo(json.dumps(data, indent=1, sort_keys=True, allow_nan=False))


def console() -> Console:
    """Return where tables go; wide when nobody looks, so that no word is cut in a log."""
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class _Display(Bars):
    """A bar, and lines below it."""

    lines: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Return what is drawn; no more lines than the terminal has."""
        yield from super().get_renderables()
        if self.lines:
            fitting = self.lines[: max(1, self.console.height - 3)]
            yield Text(
                "\n".join(f"  {line}" for line in fitting), no_wrap=True, overflow="ellipsis"
            )


@contextmanager
def progress_display(*, quiet: bool) -> Iterator[Any]:
    """Give a ``Progress`` that writes to stderr: notes, and a bar at a terminal; nothing if quiet."""
    from qcompile.compiler.driver.progress import Progress

    err = Console(stderr=True)
    if quiet:
        yield Progress()
        return

    def note(text: str) -> None:
        err.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    if not err.is_terminal:
        yield Progress(note=note)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<28}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with _Display(*columns, console=err, transient=True) as bars:
        task = bars.add_task("load", total=None)

        def stage(name: str) -> None:
            bars.lines = ()
            bars.reset(task, description=name, total=None)

        def share(done: float) -> None:
            bars.update(task, total=1.0, completed=done)

        def measured(done: float, lines: Sequence[str]) -> None:
            bars.lines = lines
            bars.update(task, description="tune", total=1.0, completed=done)

        yield Progress(stage, share, note, measured)
