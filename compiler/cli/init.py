"""``qcompile init``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from qcompile.compiler.cli.common import Size, print_json, reports_errors
from qcompile.compiler.matrix.cells import RANDOM


@click.command("init")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE",
              default="qcompile.toml", show_default=True, help="The file to write.")  # fmt: skip
@click.option("-t", "--target", "--device", "targets", multiple=True,
              help="Device, host, a device file or a format; repeatable.")  # fmt: skip
@click.option("-p", "--precision", "precisions", multiple=True,
              help="Repeatable; default: the devices' own.")  # fmt: skip
@click.option("--calibrate", metavar="DATA", help="Calibration data of all builds; default: the model "
              "files' calibration().")  # fmt: skip
@click.option("--max-size", type=Size(), metavar="SIZE", help="Budget of all builds.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Gate of all builds.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Gate of all builds.")
@reports_errors
def command(models: tuple[str, ...], config: Path, targets: tuple[str, ...], as_json: bool,
            precisions: tuple[str, ...], **defaults: Any) -> None:  # fmt: skip
    """Write a qcompile.toml for MODELs and targets; without them, ask."""
    from qcompile.compiler.matrix import write

    write.refuse_existing(config)
    try:
        models = models or _asked("Models (files or folders, spaces between)")
        targets = targets or _asked("Targets (see `qcompile targets`)", "host")
    except click.Abort as error:
        said = "Missing MODEL or --target, and nobody answered."
        raise click.UsageError(said, click.get_current_context()) from error
    folder = Path(os.path.realpath(config)).parent
    keys = {name.replace("_", "-"): value for name, value in defaults.items() if value is not None}
    if keys.get("calibrate", RANDOM) != RANDOM:
        keys["calibrate"] = write.relative(keys["calibrate"], folder)
    project = write.create(config, write.text(folder, models, targets, precisions, keys))
    if as_json:
        print_json({"file": str(config), "builds": [cell.name for cell in project.cells]})
    else:
        click.echo(f"{config}: {len(project.cells)} builds; `qcompile check` prints the plan")


def _asked(question: str, default: str | None = None) -> tuple[str, ...]:
    return tuple(click.prompt(question, default=default, err=True).split())
