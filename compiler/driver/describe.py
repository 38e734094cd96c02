"""A build -> its manifest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import qcompile
from qcompile.compiler.driver import parity as parities
from qcompile.compiler.driver import write
from qcompile.compiler.ir.graph import Graph
from qcompile.runtime.manifest import FILE, Manifest, TensorInfo
from qcompile.targets.base import Emitted

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build


def manifest(work: Build, emitted: Emitted, stage: Path, parity: Mapping[str, Any]) -> Manifest:
    """Return the manifest of what lies in ``stage``."""
    graph, quantized = work.graph, work.quantized
    assert graph is not None
    assert quantized is not None
    scheme, source = work.target.scheme, work.source
    files = {n: f for n, f in write.file_table(stage).items() if n != FILE}
    gates = parities.gates(parity, scheme.float_bits, work.options.min_sqnr) if parity else []
    licence = {"licence": source.licence} if source.licence else {}
    return Manifest(
        name=source.name,
        target=work.target.name,
        format=work.target.emitter.name,
        precision=scheme.precision,
        artifact=emitted.artifact,
        engine=emitted.engine,
        inputs=tuple(input_infos(graph)),
        outputs=tuple(output_infos(graph)),
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
        sizes=_sizes(work, files[emitted.artifact].bytes),
        gates=tuple(_plain(gate) for gate in gates),
    )


def input_infos(graph: Graph) -> list[TensorInfo]:
    """Return the inputs as the manifest describes them."""
    found = []
    for name, example in graph.inputs.items():
        free = graph.dynamic.get(name, {})
        shape = tuple(free[a].name if a in free else s for a, s in enumerate(example.shape))
        found.append(TensorInfo(name, _numpy_name(example), shape))
    return found


def output_infos(graph: Graph) -> list[TensorInfo]:
    """Return the outputs as the manifest describes them."""
    (output,) = graph.module.graph.find_nodes(op="output")
    symbols = {}
    for node in graph.module.graph.find_nodes(op="placeholder"):
        for axis, dim in graph.dynamic.get(str(node.target), {}).items():
            symbols[str(node.meta["val"].shape[axis])] = dim.name
    found = []
    for name, node in zip(graph.outputs, output.args[0], strict=True):
        value: Any = node.meta["val"] if "val" in node.meta else graph.constant(node)
        shape = [symbols.get(str(s), int(s) if str(s).isdigit() else str(s)) for s in value.shape]
        found.append(TensorInfo(name, _numpy_name(value), tuple(shape)))
    return found


def _numpy_name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


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
        "granularity": o.granularity,
        "keep_float": sorted(o.keep_float),
        "max_drop": o.max_drop,
        "min_sqnr": o.min_sqnr,
        "num_samples": o.num_samples,
        "precision": work.target.scheme.precision,
        "rounding": o.rounding,
        "seed": o.seed,
        "target": o.target if not o.target.endswith(".toml") else work.target.name,
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
        digest.update(
            graph.weights[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
