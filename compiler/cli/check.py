"""``qcompile check``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from qcompile.compiler.cli.common import print_json, reports_errors


@click.command("check")
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE",
              default="qcompile.toml", show_default=True, help="The file with the builds.")  # fmt: skip
@click.option(
    "--only", multiple=True, metavar="NAME", help="This model, target or build; repeatable."
)
@click.option(
    "--jobs", type=click.IntRange(1), default=1, show_default=True, help="Models at once."
)
@reports_errors
def command(config: Path, only: tuple[str, ...], jobs: int, as_json: bool) -> None:
    """Check qcompile.toml and print the plan: formats, sizes, what is up to date; nothing is built."""
    from qcompile.compiler.cli.matrix import plan_table
    from qcompile.compiler.matrix.plan import plan
    from qcompile.compiler.matrix.read import read

    rows = plan(read(config), only=only, jobs=jobs)
    if as_json:
        print_json({"builds": rows})
    else:
        plan_table(rows)
    sys.exit(2 if any(row["error"] for row in rows) else 0)
