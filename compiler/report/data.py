"""Reports and differences as plain data for ``--json``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.differences import Difference, LayerChange
from qcompile.compiler.report.findings import Finding
from qcompile.compiler.report.reports import Report
from qcompile.compiler.report.runs import Outputs

SCHEMA = 2


def report_data(report: Report) -> dict[str, Any]:
    """Return a report; ``schema`` grows when a field changes its meaning."""
    return {
        "schema": SCHEMA,
        "passed": report.passed,
        "bundles": [_entry(entry) for entry in report.entries],
        "baseline": _baseline(report) if report.compared else None,
        "findings": [_finding(finding) for finding in report.findings],
    }


def difference_data(found: Difference, outputs: Outputs | None = None) -> dict[str, Any]:
    """Return what changed from one bundle to another."""
    data: dict[str, Any] = {
        "before": found.before.label,
        "after": found.after.label,
        "same": found.empty,
        "figures": [{**asdict(f), "change": f.change} for f in found.figures],
        "gates": [asdict(row) for row in found.gates],
        "settings": [asdict(row) for row in found.settings],
        "layers": [_layer_change(row) for row in found.layers],
        "notes": list(found.notes),
    }
    if outputs is not None:
        data["outputs"] = [asdict(row) for row in outputs.rows]
        data["notes"] += outputs.notes
    return data


def _entry(entry: Entry) -> dict[str, Any]:
    model, target, format, precision = entry.identity
    return {
        "name": entry.label,
        "model": model,
        "target": target,
        "format": format,
        "precision": precision,
        "passed": entry.passed,
        "gates": [asdict(gate) for gate in entry.gates],
        "artifact_bytes": entry.bytes,
        "float_bytes": entry.float_bytes,
        "bits_per_weight": entry.bits,
        "sqnr_db": entry.total_db,
        "latency": asdict(entry.latency) if entry.latency else None,
        "ram_bytes": entry.ram_bytes,
        "quality": [asdict(row) for row in entry.quality],
        "outputs": [asdict(row) for row in entry.outputs],
        "layers": [{**asdict(row), "bits": row.bits} for row in entry.layers],
        "plan": [asdict(row) for row in entry.planned],
        "front": asdict(entry.front) if entry.front else None,
        "engine_values": [asdict(row) for row in entry.values],
        "predictions": [asdict(row) for row in entry.samples.predictions],
        "tokens": [asdict(row) for row in entry.samples.tokens],
        "output_errors": [asdict(row) for row in entry.samples.errors],
        "notes": list(entry.notes),
        "floats": list(entry.floats),
        "facts": dict(entry.facts),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    rule = {"rule": finding.rule.id, "level": finding.rule.level}
    return {**rule, "bundle": finding.bundle, "layer": finding.layer, "message": finding.message}


def _baseline(report: Report) -> dict[str, Any]:
    return {
        "differences": [difference_data(found) for found in report.differences],
        "added": list(report.added),
        "removed": list(report.removed),
    }


def _layer_change(row: LayerChange) -> dict[str, Any]:
    sides = {"before": row.before, "after": row.after}
    return {
        "name": row.name,
        "what": list(row.what),
        "bytes": row.bytes,
        "weight_db": row.weight_db,
        "output_db": row.output_db,
        "damage": row.damage,
        **{side: asdict(layer) if layer else None for side, layer in sides.items()},
    }
