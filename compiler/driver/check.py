"""``qcompile verify``: a bundle against its manifest, its vectors, and its model in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from qcompile.compiler.driver import parity
from qcompile.compiler.ir.errors import ModelError
from qcompile.runtime import vectors
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
    for gate in session.manifest.gates:
        checks.append(Check(f"gate {gate['gate']} at build", gate["passed"], gate["message"], ""))
    for row in vectors.check(session):
        measured = "equal" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"
        needed = f"{row.limit_db:.1f} dB"
        checks.append(Check(f"vectors: {row.output}", row.passed, measured, needed))
    if against is not None:
        checks += _against(session, against, min_sqnr)
    return checks


def _against(session: Session, model: str, min_sqnr: float | None) -> list[Check]:
    from qcompile.compiler.driver.describe import model_sha256
    from qcompile.compiler.frontend.load import load

    source = load(model)
    manifest = session.manifest
    wanted = [i.name for i in manifest.inputs]
    if list(source.graph.inputs) != wanted:
        raise ModelError(
            f"{model} has the inputs {', '.join(source.graph.inputs)}; the bundle has {', '.join(wanted)}"
        )
    same = model_sha256(source.graph) == manifest.model.get("sha256")
    note = "the model it was built from" if same else "ANOTHER model than it was built from"
    arrays = vectors.read_arrays(session.folder / "vectors" / "inputs.npz")
    inputs = {name: torch.from_numpy(arrays[name]) for name in wanted}
    reference = parity.reference_outputs(source.module, source.graph, inputs)
    rows = parity.compare(reference, parity.engine_outputs(session, inputs))
    checks = [Check("model", same, note, "sha256 of graph and weights")]
    for name, row in rows.items():
        limit = _limit(session, name, min_sqnr)
        measured = row["sqnr_db"]
        shown = "equal" if measured is None else f"{measured:.1f} dB"
        passed = measured is None or measured >= limit
        checks.append(Check(f"PyTorch: {name}", passed, shown, f"{limit:.1f} dB"))
    return checks


def _limit(session: Session, output: str, min_sqnr: float | None) -> float:
    own = session.manifest.options.get("min_sqnr")
    if min_sqnr is not None or own is not None:
        return float(own if min_sqnr is None else min_sqnr)
    measured = session.manifest.parity["total"].get(output, {}).get("sqnr_db")
    return 60.0 if measured is None else float(measured) - 3.0
