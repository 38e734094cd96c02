"""The three errors of a bundle: export, quantization, engine.

export        float graph against PyTorch
quantization  quantized graph against float graph
engine        artifact in its engine against the quantized graph, each stored value by itself

and the sum that users see: the artifact against PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.quantization.records import sqnr_db
from qcompile.runtime.session import Session

EXPORT_LIMIT_DB = 60.0
"""Folding and reordering in float32 leave far more; a wrong pass leaves far less."""

ENGINE_LARGEST = 1
"""Codes by which a stored value may differ: one, where a sum lies between two codes."""

ENGINE_DIFFERING = 0.25
"""Share of codes of one value that may differ by one: integer adds round twice, softmax is a table
(measured: 0.1 % after convolutions, 6 % after softmax). A zero point that is off by one gives 100 %."""

OUTPUT_LIMIT_DB = 10.0
"""For the artifact's outputs as a whole against the quantized graph, where quantization itself leaves more:
values are compared one by one, given those before them, and would not show another model's outputs."""

FLOAT_ENGINE_LIMIT_DB = {32: 60.0, 16: 35.0}
"""For float outputs of a graph that computes in so many bits."""

Outputs = Mapping[str, Tensor]


def reference_outputs(module: nn.Module, graph: Graph, inputs: Mapping[str, Tensor]) -> Outputs:
    """Return what PyTorch itself gives, by the graph's output names."""
    training = [m for m in module.modules() if m.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            found = module(**inputs) if _by_name(module, inputs) else module(*inputs.values())
    finally:
        for part in training:
            part.training = True
    leaves = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return dict(zip(graph.outputs, leaves, strict=True))


def compare(reference: Outputs, found: Outputs) -> dict[str, dict[str, float | None]]:
    """Return ``sqnr_db`` (``None`` where equal) and ``largest`` difference of each output."""
    rows = {}
    for name, expected in reference.items():
        quality = sqnr_db([(expected, found[name])])
        largest = float((expected.double() - found[name].double()).abs().max())
        finite = quality is not None and math.isfinite(quality)
        exact = largest == 0.0
        rows[name] = {
            "sqnr_db": None if exact else quality if finite else -1000.0,
            "largest": largest,
        }
    return rows


def worst_db(rows: Mapping[str, Mapping[str, float | None]]) -> float | None:
    """Return the least SQNR of all outputs; ``None`` if all are equal."""
    values = [v for row in rows.values() if (v := row["sqnr_db"]) is not None]
    return min(values, default=None)


def engine_outputs(session: Session, arrays: Mapping[str, Any], names: Sequence[str]) -> Outputs:
    """Return what the loaded bundle gives, by the graph's output names.

    Args:
        session: The bundle.
        arrays: The artifact's inputs.
        names: Of the graph's outputs, in order.
    """
    found = session.run(arrays)
    return {n: torch.from_numpy(np.array(v)) for n, v in zip(names, found.values(), strict=True)}


def gates(
    parity: Mapping[str, Any], float_bits: int, min_sqnr: float | None
) -> list[dict[str, Any]]:
    """Return the parity gates: ``gate``, ``limit``, ``measured``, ``passed``, ``message``."""
    found = [
        _at_least("export", EXPORT_LIMIT_DB, worst_db(parity["export"]), "float graph and PyTorch")
    ]
    found += [engine_gate(parity["engine"], float_bits)]
    limit, worst = parity["vectors_min_sqnr_db"], worst_db(parity["engine_outputs"])
    of = "the artifact and the quantized graph"
    found += [_at_least("engine-outputs", min(OUTPUT_LIMIT_DB, limit), worst, of)]
    if min_sqnr is not None:
        worst = worst_db(parity["total"])
        found.append(_at_least("min-sqnr", min_sqnr, worst, "the artifact and PyTorch"))
    return found


def _at_least(gate: str, limit: float, measured: float | None, of: str) -> dict[str, Any]:
    passed = measured is None or measured >= limit
    shown = "equal" if measured is None else f"{measured:.1f} dB"
    message = f"{of}: {shown}, the limit is {limit:g} dB"
    return {
        "gate": gate, "limit": limit, "measured": measured, "passed": passed, "message": message,
    }  # fmt: skip


def engine_gate(rows: Sequence[Mapping[str, Any]], float_bits: int) -> dict[str, Any]:
    """Return the gate of the values that were compared one by one."""
    limit = FLOAT_ENGINE_LIMIT_DB[float_bits]
    bad = [row for row in rows if not _engine_row_passes(row, limit)]
    codes = [row["largest"] for row in rows if row["sqnr_db"] is None and not row.get("exact")]
    floats = [row["sqnr_db"] for row in rows if row["sqnr_db"] is not None]
    worst = max(codes, default=0)
    message = f"each value, given those before it: codes within {ENGINE_LARGEST}"
    if floats:
        message += f", floats at least {min(floats):.1f} dB"
    if bad:
        first = bad[0]
        message = (
            f"{len(bad)} value(s) differ from the quantized graph, first {first['name']}: "
            f"by up to {first['largest']:g}, {100 * first['differing']:.2f} % of its values"
        )
    return {
        "gate": "engine", "limit": ENGINE_LARGEST, "measured": worst,
        "passed": not bad, "message": message,
    }  # fmt: skip


def _engine_row_passes(row: Mapping[str, Any], limit_db: float) -> bool:
    if row.get("exact"):
        return bool(row["differing"] == 0)
    if row["sqnr_db"] is not None:
        return bool(row["sqnr_db"] >= row.get("limit_db", limit_db))
    return bool(row["largest"] <= ENGINE_LARGEST and row["differing"] <= ENGINE_DIFFERING)


def _by_name(module: nn.Module, inputs: Mapping[str, Any]) -> bool:
    import inspect

    try:
        parameters = inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return False
    return all(name in parameters for name in inputs)
