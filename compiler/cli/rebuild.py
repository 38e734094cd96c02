"""``qcompile rebuild BUNDLE --model MODEL``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json, progress_display, reports_errors


@click.command("rebuild")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-m", "--model", required=True, metavar="MODEL", help="What it was built from.")
@click.option("-t", "--target", metavar="FILE", help="The device file, if it was built for one.")
@click.option(
    "--calibrate", metavar="DATA", help="The calibration data, if not the model file's own."
)
@click.option("--imatrix", metavar="FILE", help="The importances, if there were any.")
@click.option("--plan", metavar="FILE", help="The plan, if one was given.")
@click.option("--tune-database", metavar="FILE", help="The measured schedules, if it was tuned.")
@reports_errors
def command(bundle: Path, model: str, as_json: bool, **given: Any) -> None:
    """Make a bundle again from its manifest, and compare all bytes; the bundle is not changed."""
    from qcompile.compiler.driver.rebuild import rebuild

    with progress_display(quiet=as_json) as progress:
        differences = rebuild(bundle, model, given, progress=progress)
    if as_json:
        rows = [vars(d) for d in differences]
        print_json({"bundle": str(bundle), "identical": not rows, "differences": rows})
    elif not differences:
        click.echo(f"{bundle}: made again, and every byte is the same")
    else:
        table = Table("differs", "in the bundle", "made again", box=None, pad_edge=False)
        for d in differences:
            table.add_row(*map(escape, (d.what, d.before, d.after)))
        console().print(table)
    sys.exit(1 if differences else 0)
