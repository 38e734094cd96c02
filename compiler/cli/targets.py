"""``qcompile targets [NAME]``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import click
from rich.table import Table

from qcompile.compiler.cli.common import console, print_json, reports_errors

_FACTS = (
    ("format", "format", ""),
    ("arch", "arch", ""),
    ("isa", "isa", ""),
    ("llvm_cpu", "LLVM's name", ""),
    ("chip", "chip", ""),
    ("compute_units", "compute units", ""),
    ("cores", "CPU cores", ""),
    ("gpu_cores", "GPU cores", ""),
    ("neural_engine_cores", "Neural Engine cores", ""),
    ("neural_engine_generation", "  generation", ""),
    ("neural_engine_tops", "  peak", " trillion operations a second"),
    ("memory_mib", "memory", " MiB"),
    ("memory_bandwidth_gbs", "memory bandwidth", " GB/s"),
    ("os", "system", ""),
    ("os_first", "  sold with", ""),
    ("os_minimum", "  assumed at least", ""),
)
"""A fact of a device, how it is called, and its unit."""


@click.command("targets")
@click.argument("name", required=False)
@reports_errors
def command(name: str | None, as_json: bool) -> None:
    """List devices, or show one: facts, what runs fast there and why, and the sources."""
    from qcompile.targets.device import device_names, load_device
    from qcompile.targets.formats import emitter_names

    if name is not None:
        _show(load_device(name), as_json)
        return
    devices = [load_device(n) for n in device_names()]
    if as_json:
        print_json([dataclasses.asdict(d) for d in devices])
        return
    table = Table("target", "description", "format", "default", "fast", box=None, pad_edge=False)
    for device in devices:
        fast = _brief([p for p, fact in device.precisions.items() if fact.fast])
        table.add_row(device.name, device.description, device.format, device.precision, fast)
    console().print(table)
    click.echo(f"formats, for this machine: {', '.join(emitter_names())}")


def _brief(precisions: Sequence[str]) -> str:
    """Return names in a line, all palettes as one."""
    palettes = [p.removeprefix("palette-") for p in precisions if p.startswith("palette-")]
    others = [p for p in precisions if not p.startswith("palette-")]
    return ", ".join([*others, f"palette-{'/'.join(palettes)}"] if palettes else others)


def _show(device: object, as_json: bool) -> None:
    data = dataclasses.asdict(device)  # type: ignore[call-overload]
    if as_json:
        print_json(data)
        return
    out = console()
    out.print(f"[bold]{data['name']}[/bold]: {data['description']}")
    for key, label, unit in _FACTS:
        if data[key]:
            value = ", ".join(data[key]) if isinstance(data[key], tuple) else data[key]
            out.print(f"  {label:<20} {value}{unit}", markup=False)
    for precision, fact in data["precisions"].items():
        default = ", the default" if precision == data["precision"] else ""
        speed = "runs fast" if fact["fast"] else "merely runs"
        out.print(f"  {precision:<20} {speed}{default}: {fact['why']}", markup=False)
    for key, url in data["sources"].items():
        out.print(f"  source of {key:<24} {url}", markup=False)
