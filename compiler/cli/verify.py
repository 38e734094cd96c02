"""``qcompile verify BUNDLE [--against MODEL]``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json, reports_errors


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", metavar="MODEL", help="Also compare with this model in PyTorch.")
@click.option(
    "--min-sqnr", type=float, metavar="DB", help="Gate of --against; default: the build's."
)
@reports_errors
def command(bundle: Path, against: str | None, min_sqnr: float | None, as_json: bool) -> None:
    """Check a bundle's files, run its vectors, compare it with its model; or check an .mlpackage."""
    from qcompile.compiler.driver.check import verify

    rows = verify(bundle, against=against, min_sqnr=min_sqnr)
    passed = all(row.passed for row in rows)
    if as_json:
        print_json({"bundle": str(bundle), "passed": passed, "checks": [vars(r) for r in rows]})
    else:
        table = Table("", "check", "measured", "needed", box=None, pad_edge=False)
        for row in rows:
            table.add_row("ok" if row.passed else "FAILED", row.check, row.measured, row.needed)
        console().print(table)
    sys.exit(0 if passed else 1)
