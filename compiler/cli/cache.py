"""``qcompile cache``, and what verbs that build may be told about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from rich.table import Table

from qcompile.compiler.cli.common import Size, console, print_json, reports_errors
from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.stages.folder import DEFAULT_BYTES, Stored, entries, evict
from qcompile.compiler.stages.options import WITHOUT_CACHE, CacheOptions
from qcompile.targets.cache import cache_root

Function = TypeVar("Function", bound=Callable[..., Any])
_ARGUMENTS = ("cache_dir", "cache_size", "remote_cache", "remote_cache_read_only", "no_cache")
_FOLDER = click.option(
    "--cache-dir", type=click.Path(path_type=Path), metavar="DIR", envvar="QCOMPILE_CACHE_DIR",
    show_envvar=True, help="Where builds keep what they have in common.",
)  # fmt: skip


def cache_options(function: Function) -> Function:
    """Add what is said about the cache; see ``cache_of``."""
    options = (
        _FOLDER,
        click.option("--cache-size", type=Size(), default=DEFAULT_BYTES, metavar="SIZE",
                     envvar="QCOMPILE_CACHE_SIZE", show_envvar=True, show_default="10GiB",
                     help="Its bytes at most; what was not read for longest goes first."),
        click.option("--remote-cache", metavar="URL", envvar="QCOMPILE_REMOTE_CACHE", show_envvar=True,
                     help="Also look there, and put there what is made: a URL of fsspec, s3://..., gs://..., "
                     "file://..."),
        click.option("--remote-cache-read-only", is_flag=True, envvar="QCOMPILE_REMOTE_CACHE_READ_ONLY",
                     show_envvar=True, help="Put nothing there."),
        click.option("--no-cache", is_flag=True, help="Compute all anew, and keep nothing."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def cache_of(given: dict[str, Any], *, matrix: bool) -> CacheOptions:
    """Take what a user says about the cache out of a verb's arguments.

    Args:
        given: The arguments.
        matrix: Whether there is a cache if nothing is said of one.

    Raises:
        UsageError: It contradicts itself.
    """
    folder, size, url, read_only, none = (given.pop(name) for name in _ARGUMENTS)
    context = click.get_current_context()
    said = [n for n in _ARGUMENTS if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in said if name != "no_cache")
    if none and flags:
        raise click.UsageError(f"{flags} is for a cache, and --no-cache is given", context)
    if none:
        return WITHOUT_CACHE
    if read_only and url is None:
        raise click.UsageError("--remote-cache-read-only needs --remote-cache URL", context)
    if folder is None and (matrix or url is not None):
        folder = default_folder()
    return CacheOptions(folder and folder.absolute(), size, url, read_only)


def default_folder() -> Path:
    """Return where the builds of ``qcompile.toml`` keep what they have in common."""
    return cache_root() / "stages"


@click.command("cache")
@_FOLDER
@click.option("--prune", type=Size(), metavar="SIZE", help="Remove what was not read for longest, until "
              "the rest has SIZE; 0 removes all.")  # fmt: skip
@reports_errors
def command(cache_dir: Path | None, prune: int | None, as_json: bool) -> None:
    """Show what builds keep in the cache, or remove some of it."""
    folder = cache_dir or default_folder()
    try:
        gone = [] if prune is None else evict(folder, prune)
    except OSError as error:
        raise OutputError(f"the cache {folder} cannot be changed: {error.strerror}") from error
    found = entries(folder)
    if as_json:
        print_json({"folder": str(folder), "stages": _rows(found), "removed": _rows(gone)})
        return
    table = Table("stage", "entries", "bytes", box=None, pad_edge=False)
    for row in [*_rows(found), _sum("in all", found)]:
        table.add_row(row["stage"], f"{row['entries']:,}", f"{row['bytes']:,}")
    console().print(table)
    console().print(f"{folder}" + (f"; removed: {_said(gone)}" if prune is not None else ""))


def _said(gone: Sequence[Stored]) -> str:
    row = _sum("", gone)
    return f"{row['entries']:,} entries, {row['bytes']:,} bytes"


def _rows(found: Sequence[Stored]) -> list[dict[str, Any]]:
    stages = sorted({stored.stage for stored in found})
    return [_sum(stage, [s for s in found if s.stage == stage]) for stage in stages]


def _sum(stage: str, found: Sequence[Stored]) -> dict[str, Any]:
    return {"stage": stage, "entries": len(found), "bytes": sum(s.bytes for s in found)}
