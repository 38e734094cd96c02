"""Plans and bundles as tables for people and as data for machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json
from qcompile.compiler.driver import Bundle, DryRun
from qcompile.compiler.driver.front import Front
from qcompile.compiler.driver.plan import MEASURES
from qcompile.targets.plans import UnitPlan


def bundle(found: Bundle) -> None:
    """Print what was built."""
    out = console()
    out.print(f"[bold]{found.path}[/bold]", soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    for label, text in found.summary():
        table.add_row(label, text)
    for note in found.manifest.notes:
        table.add_row("note", escape(note))
    if found.seconds:
        total = sum(found.seconds.values())
        parts = ", ".join(f"{name} {value:.1f}" for name, value in found.seconds.items())
        table.add_row("seconds", f"{total:.1f} ({parts})")
    out.print(table)


def bundle_data(found: Bundle) -> dict[str, Any]:
    """Return a bundle as data."""
    import json

    return {
        "bundle": str(found.path),
        "manifest": json.loads(found.manifest.to_json()),
        "passed": found.passed,
        "seconds": dict(found.seconds),
    }


def plan(found: DryRun) -> None:
    """Print a dry run."""
    out = console()
    if found.tensors:
        _tensors(found)
        return
    out.print(f"[bold]{found.target}[/bold]: {found.format}, {found.precision}; "
              f"weights {found.weight}; activations {found.activation}")  # fmt: skip
    table = Table("layer", "op", "computes in", "weight bytes", box=None, pad_edge=False)
    for node in found.nodes:
        size = f"{node.bytes:,}" if node.bytes else ""
        table.add_row(node.name, node.op, node.runs, size)
    out.print(table)
    out.print(f"artifact: about {found.artifact_bytes:,} bytes")
    out.print(f"peak memory: about {found.peak_ram_bytes:,} bytes of weights and activations, "
              "besides the engine")  # fmt: skip
    slow = found.slow()
    out.print("all of it runs fast there" if not slow else "not fast there:")
    for line in slow:
        out.print(f"  {line}")


def _tensors(found: DryRun) -> None:
    """Print the plan of a language model's file."""
    out = console()
    out.print(f"[bold]{found.target}[/bold]: {found.format}, {found.precision}")
    table = Table("tensor", "shape", "type", "bytes", box=None, pad_edge=False)
    for row in found.tensors:
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.name, shape, row.format, f"{row.bytes:,}")
    out.print(table)
    kept = [f"{row.name} is {row.why}" for row in found.tensors
            if row.why and row.name not in row.why]  # fmt: skip
    for note in (*kept, *found.notes):
        out.print(f"note: {note}", markup=False)
    out.print(f"artifact: {found.artifact_bytes:,} bytes")
    if found.least_token_ms is not None:
        out.print(
            f"a token: at least {found.least_token_ms:.3g} ms, modelled from the memory's bandwidth"
        )


def layers(found: Bundle, limit: int | None) -> None:
    """Print the layer table, worst first."""
    rows = found.manifest.layers[:limit]
    columns = ("layer", "op", "weight", "bytes", "rounding", "weight dB", "output dB", "note")
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(
            row["name"], row["op"], row["weight"], f"{row['bytes']:,}", row["rounding"],
            _decibels(row["weight_sqnr_db"]), _decibels(row["output_sqnr_db"]), row["note"],
        )  # fmt: skip
    console().print(table)


def front(found: Front, plot: Path | None, *, as_json: bool) -> None:
    """Print plans of growing size or time; draw them, if there is a file for it."""
    if plot is not None:
        found.draw(plot)
    if as_json:
        print_json(found.as_json())
        return
    out = console()
    heading, *rows = found.table()
    out.print(f"[bold]{escape(found.title)}[/bold]")
    table = Table(*heading, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    out.print(table)


def plan_rows(found: Bundle, limit: int | None) -> None:
    """Print what each tensor was given, and what else was possible; what does most damage first."""
    what = MEASURES[found.manifest.plan.get("measure", "kl")]
    table = Table("tensor", "format", "bytes", what, "better", "cheaper", box=None, pad_edge=False)
    rows = found.manifest.plan["rows"]
    for row in sorted(rows, key=lambda r: (-r["damage"], r["tensor"]))[:limit]:
        others = (_other(row["better"]), _other(row["cheaper"]))
        table.add_row(
            row["tensor"], row["format"], f"{row['bytes']:,}", f"{row['damage']:.3g}", *others
        )
    console().print(table)


def _other(other: dict[str, Any] | None) -> str:
    return f"{other['format']}: {other['bytes']:+,} bytes, {other['damage']:+.2g}" if other else ""


def foldings(found: Bundle, limit: int | None) -> None:
    """Print which inputs were rescaled, those that gained most first."""
    table = Table("rescaled", "layers", "factors", "error, times", box=None, pad_edge=False)
    for row in sorted(found.manifest.foldings, key=lambda r: r["error"])[:limit]:
        table.add_row(row["name"], ", ".join(row["layers"]), row["method"], f"{row['error']:.3f}")
    console().print(table)


def units(plans: list[UnitPlan], said: list[str], limit: int | None) -> None:
    """Print where each op would run, those that some unit cannot take first."""
    out = console()
    if plans:
        table = Table("op", "type", "compute units", "why", box=None, pad_edge=False)
        for plan in sorted(plans, key=lambda p: not p.why)[:limit]:
            table.add_row(plan.name, plan.op, ", ".join(plan.units), plan.why)
        out.print(table)
    for sentence in said:
        out.print(sentence, markup=False)


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
