"""A build -> its manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import qcompile
from qcompile.compiler.driver import parity as parities
from qcompile.compiler.driver import weight_plans, write
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.quantization.block_experts import seldom_reached
from qcompile.runtime.manifest import FILE, FileInfo, Manifest
from qcompile.targets.order import Emitted

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build


def manifest(
    work: Build,
    emitted: Emitted,
    stage: Path,
    parity: Mapping[str, Any],
    known: Mapping[str, FileInfo] | None = None,
) -> Manifest:
    """Return the manifest of what lies in ``stage``.

    Args:
        work: The build.
        emitted: What the emitter wrote.
        stage: The folder.
        parity: The errors that were measured; empty before.
        known: Files that were digested before; those of the artifact, which stays as it is, are not again.
    """
    graph, quantized = work.graph, work.quantized
    assert graph is not None
    assert quantized is not None
    scheme, source = work.target.scheme, work.source
    kept = {n: f for n, f in (known or {}).items() if _is_artifact(n, emitted.artifact)}
    files = {n: f for n, f in write.file_table(stage, kept).items() if n != FILE}
    gates = parities.gates(parity, scheme.float_bits, work.options.min_sqnr) if parity else []
    seldom = seldom_reached(work.log.layers)
    licence = {"licence": source.licence} if source.licence else {}
    return Manifest(
        name=source.name,
        target=work.target.name,
        format=work.target.emitter.name,
        precision=scheme.precision,
        artifact=emitted.artifact,
        engine=emitted.engine,
        inputs=work.target.emitter.inputs(graph),
        outputs=work.target.emitter.outputs(graph),
        files=files,
        tools={**_tools(), **emitted.tools},
        model={"source": source.where, "sha256": model_sha256(source.graph), **licence},
        calibration=_calibration(work),
        options=_options(work),
        passes=tuple({"name": r.name, "rewrites": r.rewrites} for r in work.records),
        layers=tuple(_plain(row) for row in _layers(work)),
        activations=tuple(_plain(row) for row in work.log.as_json()["activations"]),
        floats=tuple(emitted.floats),
        parity=_plain(parity),
        sizes=_sizes(work, _artifact_bytes(files, emitted.artifact)),
        gates=tuple(_plain(gate) for gate in gates),
        interface=_plain(asdict(source.graph.interface)),
        notes=tuple(filter(None, (*emitted.notes, *work.notes, work.read, seldom))),
        plan=_plain(_plan(work)),
        foldings=tuple(_plain(row) for row in work.log.as_json()["foldings"]),
    )


def _plan(work: Build) -> Mapping[str, Any]:
    """Return what was chosen under limits: formats of weights, or layers that stay float."""
    if work.planned is not None:
        return work.planned.as_json()
    return (
        {} if work.float_search is None else work.float_search.as_json(weight_plans.work_kind(work))
    )


def _artifact_bytes(files: Mapping[str, FileInfo], artifact: str) -> int:
    """Return the bytes of the artifact, a file or a folder."""
    return sum(f.bytes for n, f in files.items() if _is_artifact(n, artifact))


def _is_artifact(name: str, artifact: str) -> bool:
    return name == artifact or name.startswith(f"{artifact}/")


def _tools() -> dict[str, str]:
    packages = ("torch", "numpy", "safetensors")
    found = {p: importlib.metadata.version(p) for p in packages}
    return {**found, "python": platform.python_version(), "qcompile": qcompile.__version__}


def _calibration(work: Build) -> dict[str, Any]:
    samples = work.samples
    if samples is None:
        return {}
    return {"source": samples.source, "samples": samples.count, "sha256": samples.sha256()}


def _options(work: Build) -> dict[str, Any]:
    o = work.options
    return {
        "format": work.target.emitter.name,
        "channel_scales": o.weights.channel_scales,
        "granularity": o.weights.granularity,
        "group_size": o.weights.group_size,
        "keep_float": sorted(o.keep_float),
        "max_drop": o.max_drop,
        "min_sqnr": o.min_sqnr,
        "minimum_os": o.minimum_os,
        "num_samples": o.num_samples,
        "palette_entries": o.weights.palette_entries,
        "objects": o.objects,
        "precision": work.target.scheme.precision,
        "rounding": o.rounding,
        "seed": o.seed,
        "tune": o.tuning.trials,
        **_of_blocks(work),
        "target": o.target if not o.target.endswith(".toml") else work.target.name,
    }


def _of_blocks(work: Build) -> dict[str, Any]:
    """Return the options of plans, and those that only language models have."""
    o = work.options
    planned = {
        "budget": {k: v for k, v in asdict(o.budget).items() if v is not None},
        "plan_file": o.plan_file.name if o.plan_file else None,
        "tensor_types": [f"{expression}={kind}" for expression, kind in o.blocks.tensor_types],
    }
    if work.source.checkpoint is None:
        return planned if o.plans else {}
    return {
        **planned,
        "encoder": o.blocks.encoder,
        "imatrix": o.blocks.imatrix.name if o.blocks.imatrix else None,
        "kv_type": o.blocks.kv_type,
        "seq_len": o.seq_len,
    }


def _layers(work: Build) -> list[dict[str, Any]]:
    """Return the layer table, worst first."""
    rows: list[dict[str, Any]] = work.log.as_json()["layers"]

    def damage(row: Mapping[str, Any]) -> tuple[float, str]:
        quality = row["output_sqnr_db"]
        return (math.inf if quality is None else quality, row["name"])

    return sorted(rows, key=damage)


def _sizes(work: Build, artifact: int) -> dict[str, Any]:
    assert work.graph is not None
    weights = [work.graph.weights.peek(n) for n in work.graph.weights]
    layers = work.log.layers
    parameters = sum(row.parameters for row in layers)
    bits = 8 * sum(row.bytes for row in layers) / parameters if parameters else None
    return {
        "artifact_bytes": artifact,
        "float_bytes": sum(w.numel() * 4 for w in weights if w.is_floating_point()),
        "parameters": sum(w.numel() for w in weights if w.is_floating_point()),
        "bits_per_weight": None if bits is None else round(bits, 4),
    }


def _plain(data: Any) -> Any:
    """Return data for JSON: infinite decibels, of what is exact, become null."""
    if isinstance(data, Mapping):
        return {str(k): _plain(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(v) for v in data]
    if isinstance(data, float):
        return round(data, 6) if math.isfinite(data) else None
    if isinstance(data, torch.Tensor):
        return data.tolist()
    return data


def model_sha256(graph: Graph) -> str:
    """Return the digest of a graph: its text and every bit of its constants."""
    digest = hashlib.sha256(graph.to_text().encode())
    for name in sorted(graph.weights):
        digest.update(graph.weights.sha256(name).encode())
    return digest.hexdigest()
