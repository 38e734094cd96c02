"""``qcompile verify``: a bundle against its manifest, its vectors, and its model in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcompile.compiler.driver import parity
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.runtime import manifest as manifests
from qcompile.runtime import vectors
from qcompile.runtime.manifest import Manifest, TensorInfo
from qcompile.runtime.session import Session
from qcompile.targets.base import Emitter, find_emitter
from qcompile.targets.formats import emitter_names
from qcompile.targets.plans import Probe

FOREIGN_LIMIT_DB = 30.0
"""What an artifact from elsewhere must reach against a model, unless the user says otherwise."""


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
        folder: The bundle, or an artifact of its own such as an ``.mlpackage``.
        against: A model as ``qcompile build`` takes it: its source, in PyTorch.
        min_sqnr: Gate of ``against``; by default what the build's own gate was, or else what the
            build measured less 3 dB.

    Raises:
        BundleError: The bundle is incomplete or was changed.
        ModelError: The model cannot be loaded, or its inputs are not the bundle's.
    """
    if not (folder / manifests.FILE).is_file():
        for emitter in map(find_emitter, emitter_names()):
            if (probe := emitter.probe(folder)) is not None:
                return _foreign(emitter, probe, folder, against, min_sqnr)
    session = open_session(folder)
    count = len(session.manifest.files)
    checks = [Check("files", True, f"{count} files as in the manifest", "sizes and sha256")]
    if (by := session.manifest.parity.get("by", {})).get("does_not_prove"):
        checks.append(
            Check("engine", True, str(by["engine"]), f"does not prove: {by['does_not_prove']}")
        )
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


def open_session(folder: Path) -> Session:
    """Return a bundle with the engine that verifies it on this machine.

    Raises:
        BundleError: The bundle is incomplete or was changed.
    """
    format = manifests.read(folder, check_files=False).format
    engine = find_emitter(format).engine_class() if format in emitter_names() else None
    return Session(folder, engine=engine)


def _foreign(
    emitter: Emitter, probe: Probe, artifact: Path, against: str | None, min_sqnr: float | None
) -> list[Check]:
    """Check an artifact that qcompile need not have written."""
    checks = [Check(name, True, text, "") for name, text in probe.checks]
    if against is not None:
        return checks + _foreign_against(emitter, probe, artifact, against, min_sqnr)
    for name, value in probe.run(probe.inputs).items():
        checks.append(_finite(name, value))
    return checks


def _finite(name: str, value: Any) -> Check:
    array = np.asarray(list(value.values()) if isinstance(value, Mapping) else value)
    if array.dtype.kind != "f":
        return Check(
            f"output {name}", True, f"{array.dtype}{list(array.shape)}", "on made-up inputs"
        )
    bad = int((~np.isfinite(array)).sum())
    text = f"{array.dtype}{list(array.shape)}, {bad} infinite or NaN"
    return Check(f"output {name}", bad == 0, text, "finite, on made-up inputs")


def _foreign_against(
    emitter: Emitter, probe: Probe, artifact: Path, model: str, min_sqnr: float | None
) -> list[Check]:
    from qcompile.compiler.frontend.load import load

    source = load(model)
    arrays = emitter.to_engine(source.graph, source.graph.inputs)
    fits = {n: a.shape for n, a in arrays.items()} == {n: a.shape for n, a in probe.inputs.items()}
    if arrays.keys() != probe.inputs.keys():
        raise ModelError(
            f"{model} takes {', '.join(arrays)}; {artifact} takes {', '.join(probe.inputs)}"
        )
    reference = parity.reference_outputs(source.module, source.graph, source.graph.inputs)
    found = probe.run(arrays)
    if len(found) != len(reference):
        raise ModelError(f"{model} gives {len(reference)} outputs, {artifact} {len(found)}")
    named = {
        n: torch.from_numpy(np.array(v)) for n, v in zip(reference, found.values(), strict=True)
    }
    limit = FOREIGN_LIMIT_DB if min_sqnr is None else min_sqnr
    checks = [Check("shapes", True, "the model's example inputs" if fits else "free sizes", "")]
    for name, row in parity.compare(reference, named).items():
        measured = row["sqnr_db"]
        passed = measured is None or measured >= limit
        checks.append(Check(f"PyTorch: {name}", passed, _decibels(measured), f"{limit:.1f} dB"))
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
    found = vectors.read_arrays(session.folder / "vectors" / "inputs.npz")
    arrays = {name: found[name] for name in wanted}
    inputs = find_emitter(manifest.format).from_engine(source.graph, arrays)
    reference = parity.reference_outputs(source.module, source.graph, inputs)
    rows = parity.compare(reference, parity.engine_outputs(session, arrays, source.graph.outputs))
    checks = [Check("model", same, note, "sha256 of graph and weights")]
    for name, row in rows.items():
        limit, measured = _limit(session, name, min_sqnr), row["sqnr_db"]
        passed = measured is None or measured >= limit
        checks.append(Check(f"PyTorch: {name}", passed, _decibels(measured), f"{limit:.1f} dB"))
    return checks


def _check_interface(graph: Graph, manifest: Manifest, model: str) -> None:
    """Refuse a model that takes or gives something else than the bundle."""
    emitter = find_emitter(manifest.format)
    kinds = (
        ("takes", emitter.inputs(graph), manifest.inputs),
        ("gives", emitter.outputs(graph), manifest.outputs),
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
