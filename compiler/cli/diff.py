"""``qcompile diff A B``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json, reports_errors

if TYPE_CHECKING:
    from qcompile.compiler.report.differences import Difference
    from qcompile.compiler.report.runs import Outputs


@click.command("diff")
@click.argument("before", type=click.Path(path_type=Path), metavar="A")
@click.argument("after", type=click.Path(path_type=Path), metavar="B")
@click.option("--limit", type=click.IntRange(1), help="Show so many layers only.")
@reports_errors
def command(before: Path, after: Path, limit: int | None, as_json: bool) -> None:
    """Compare two bundles: layer by layer, options and versions, and what they compute on A's vectors."""
    from qcompile.compiler.report.bundles import open_entry
    from qcompile.compiler.report.data import difference_data
    from qcompile.compiler.report.differences import Difference
    from qcompile.compiler.report.figures import text
    from qcompile.compiler.report.runs import compare_outputs

    found = Difference(*(open_entry(folder, text(str(folder))) for folder in (before, after)))
    outputs = compare_outputs(found.before, found.after)
    if as_json:
        print_json(difference_data(found, outputs))
        return
    _whole(found)
    _layers(found, limit)
    _settings(found)
    _outputs(outputs)
    for note in (*found.notes, *outputs.notes):
        console().print(f"note: {note}", markup=False)


def _whole(found: Difference) -> None:
    """Print the figures of both bundles."""
    from qcompile.compiler.report.figures import MISSING, changed

    out = console()
    out.print(
        f"[bold]{escape(found.before.label)}[/bold] and [bold]{escape(found.after.label)}[/bold]"
    )
    if found.empty:
        out.print("nothing differs that their manifests tell")
    table = Table("figure", "A", "B", "change", "unit", box=None, pad_edge=False)
    for row in found.figures:
        sides = (MISSING if v is None else f"{v:,.{row.digits}f}" for v in (row.before, row.after))
        table.add_row(escape(row.name), *sides, changed(row.change, digits=row.digits), row.unit)
    out.print(table)


def _layers(found: Difference, limit: int | None) -> None:
    """Print the layers that changed, those that lost most first."""
    from qcompile.compiler.report.figures import changed

    rows = found.changed[:limit]
    if not rows:
        return
    columns = ("layer", "what", "format", "bytes", "own dB", "output dB", "damage")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        last = row.after or row.before
        assert last is not None
        table.add_row(
            escape(row.name), ", ".join(row.what),
            escape(" -> ".join(row.formats) if row.formats else last.format),
            changed(row.bytes), changed(row.weight_db, digits=1), changed(row.output_db, digits=1),
            "" if row.damage is None else f"{row.damage:+.2g}",
        )  # fmt: skip
    out = console()
    out.print(table)
    hidden = len(found.changed) - len(rows)
    more = f"; {hidden} more changed" if hidden else ""
    out.print(f"{len(found.changed)} of {len(found.layers)} layers changed{more}")


def _settings(found: Difference) -> None:
    """Print options, versions and gates that differ."""
    rows = [(row.name, row) for row in found.settings]
    rows += [(f"gate {row.name}", row) for row in found.gates]
    if not rows:
        return
    table = Table("differs", "A", "B", box=None, pad_edge=False)
    for name, row in rows:
        table.add_row(escape(name), escape(row.before or ""), escape(row.after or ""))
    console().print(table)


def _outputs(outputs: Outputs) -> None:
    """Print what both bundles give on the vectors."""
    from qcompile.compiler.report.figures import percent, short

    if not outputs.rows:
        return
    columns = ("output on A's vectors", "B to A dB", "largest", "same top %", "A dB", "B dB")
    table = Table(*columns, box=None, pad_edge=False)
    for row in outputs.rows:
        sides = [_quality(v) if row.referred else "" for v in (row.before_db, row.after_db)]
        top = "" if row.agreement is None else percent(row.agreement)
        table.add_row(escape(row.name), _quality(row.sqnr_db), short(row.largest), top, *sides)
    console().print(table)


def _quality(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f}"
