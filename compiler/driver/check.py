"""``qcompile verify``: a bundle against its manifest, its vectors, and its model in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qcompile.compiler.driver import parity
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.runtime import vectors
from qcompile.runtime.manifest import Manifest, TensorInfo
from qcompile.runtime.session import Session


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
        check: What was compared.
        passed: Whether it holds.
        measured: In words.
        needed: In words.
    """

    check: str
    passed: bool
    measured: str
    needed: str


def verify(
    folder: Path, *, against: str | None = None, min_sqnr: float | None = None
) -> list[Check]:
    """Check a bundle.

    Args:
        folder: The bundle.
        against: A model as ``qcompile build`` takes it: its source, in PyTorch.
        min_sqnr: Gate of ``against``; by default what the build's own gate was, or else what the
            build measured less 3 dB.

    Raises:
        BundleError: The bundle is incomplete or was changed.
        ModelError: The model cannot be loaded, or its inputs are not the bundle's.
    """
    session = Session(folder)
    count = len(session.manifest.files)
    checks = [Check("files", True, f"{count} files as in the manifest", "sizes and sha256")]
    checks += [
        Check(f"gate {gate['gate']} at build", gate["passed"], gate["message"], "")
        for gate in session.manifest.gates
    ]
    for row in vectors.check(session):
        needed = f"{row.limit_db:.1f} dB"
        checks.append(Check(f"vectors: {row.output}", row.passed, _decibels(row.sqnr_db), needed))
    if against is not None:
        checks += _against(session, against, min_sqnr)
    return checks


def _against(session: Session, model: str, min_sqnr: float | None) -> list[Check]:
    from qcompile.compiler.driver.describe import model_sha256
    from qcompile.compiler.frontend.load import load

    source = load(model)
    manifest = session.manifest
    wanted = [i.name for i in manifest.inputs]
    _check_interface(source.graph, manifest, model)
    same = model_sha256(source.graph) == manifest.model.get("sha256")
    note = "the model it was built from" if same else "ANOTHER model than it was built from"
    arrays = vectors.read_arrays(session.folder / "vectors" / "inputs.npz")
    inputs = {name: torch.from_numpy(arrays[name]) for name in wanted}
    reference = parity.reference_outputs(source.module, source.graph, inputs)
    rows = parity.compare(reference, parity.engine_outputs(session, inputs))
    checks = [Check("model", same, note, "sha256 of graph and weights")]
    for name, row in rows.items():
        limit, measured = _limit(session, name, min_sqnr), row["sqnr_db"]
        passed = measured is None or measured >= limit
        checks.append(Check(f"PyTorch: {name}", passed, _decibels(measured), f"{limit:.1f} dB"))
    return checks


def _check_interface(graph: Graph, manifest: Manifest, model: str) -> None:
    """Refuse a model that takes or gives something else than the bundle."""
    from qcompile.compiler.driver import describe

    kinds = (
        ("takes", tuple(describe.input_infos(graph)), manifest.inputs),
        ("gives", tuple(describe.output_infos(graph)), manifest.outputs),
    )
    for verb, found, there in kinds:
        if found != there:
            raise ModelError(
                f"{model} {verb} {_listed(found)}; the bundle {verb} {_listed(there)}: "
                "it was built from another model"
            )


def _listed(tensors: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{t.name}: {t.dtype}[{', '.join(map(str, t.shape))}]" for t in tensors)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.1f} dB"


def _limit(session: Session, output: str, min_sqnr: float | None) -> float:
    own = session.manifest.options.get("min_sqnr")
    wanted = own if min_sqnr is None else min_sqnr
    if wanted is not None:
        return float(wanted)
    measured = session.manifest.parity["total"].get(output, {}).get("sqnr_db")
    return 60.0 if measured is None else float(measured) - 3.0
