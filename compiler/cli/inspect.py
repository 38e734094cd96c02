"""``qcompile inspect BUNDLE``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qcompile.compiler.cli.common import (
    console,
    debug_option,
    json_option,
    print_json,
    reports_errors,
)


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--limit", type=int, help="Show so many layers only, the worst first.")
@json_option
@debug_option
@reports_errors
def command(bundle: Path, limit: int | None, as_json: bool) -> None:
    """Show a bundle: its figures, inputs and outputs, layers by damage, and what stays float."""
    from qcompile.compiler.cli import show
    from qcompile.compiler.driver import Bundle

    found = Bundle.open(bundle)
    if as_json:
        print_json(json.loads(found.manifest.to_json()))
        return
    show.bundle(found)
    out = console()
    for kind, tensors in (("input", found.manifest.inputs), ("output", found.manifest.outputs)):
        for tensor in tensors:
            sizes = ", ".join(str(s) for s in tensor.shape)
            out.print(f"{kind} {tensor.name}: {tensor.dtype}[{sizes}]", markup=False)
    if found.manifest.layers:
        show.layers(found, limit)
    for row in found.manifest.floats:
        out.print(f"float in the engine: {row['count']} x {row['op']}: {row['why']}")
