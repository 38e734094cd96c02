"""``qcompile inspect BUNDLE``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qcompile.compiler.cli.common import console, print_json, reports_errors


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--limit", type=int, help="Show so many layers only, the worst first.")
@click.option("-t", "--target", help="Predict compute units for this device, not the bundle's.")
@reports_errors
def command(bundle: Path, limit: int | None, target: str | None, as_json: bool) -> None:
    """Show a bundle: figures, inputs, outputs, layers by damage, and where each op would run."""
    from qcompile.compiler.cli import show
    from qcompile.compiler.driver import Bundle
    from qcompile.compiler.driver.units import compute_units

    found = Bundle.open(bundle)
    plans, said = compute_units(found, target)
    if as_json:
        data = json.loads(found.manifest.to_json())
        units = {"ops": [vars(p) for p in plans], "summary": said}
        print_json({**data, "compute_units": units} if plans else data)
        return
    show.bundle(found)
    out = console()
    for kind, tensors in (("input", found.manifest.inputs), ("output", found.manifest.outputs)):
        for tensor in tensors:
            sizes = ", ".join(str(s) for s in tensor.shape)
            out.print(f"{kind} {tensor.name}: {tensor.dtype}[{sizes}]", markup=False)
    if found.manifest.layers:
        show.layers(found, limit)
    if found.manifest.plan.get("rows"):
        show.plan_rows(found, limit)
    if found.manifest.foldings:
        show.foldings(found, limit)
    show.units(plans, said, limit)
    for row in found.manifest.floats:
        out.print(f"float in the engine: {row['count']} x {row['op']}: {row['why']}")
