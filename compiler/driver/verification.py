"""A bundle before it is published: the three errors of its artifact are measured, and its vectors written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from qcompile.compiler.driver import describe, parity, write
from qcompile.passes.calibration.parallel import each
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.session import Session
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.order import Emitted

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build

VECTORS = 16
"""Samples in ``vectors/``."""


def verify(work: Build, stage: Path, emitted: Emitted) -> Manifest:
    """Measure the three errors, write the vectors, and return the manifest."""
    assert work.graph is not None
    assert work.quantized is not None
    emitter = work.target.emitter
    arrays = emitter.to_engine(work.graph, vector_inputs(work))
    inputs = emitter.from_engine(work.graph, arrays)
    reference, exported, quantized = _outputs(work, inputs)
    emitted = replace(emitted, outputs=quantized)
    rows = emitter.engine_errors(work.quantized, stage, emitted, arrays)
    (stage / "vectors").mkdir()
    save_arrays(stage / "vectors" / "inputs.npz", arrays)
    manifest = describe.manifest(work, emitted, stage, {})
    write.write_manifest(stage, manifest)
    session = Session(stage, check_files=False, engine=emitter.engine_class())
    engine = parity.engine_outputs(session, arrays, work.graph.outputs)
    names = [o.name for o in emitter.outputs(work.graph)]
    found = dict(zip(names, (engine[n].numpy() for n in work.graph.outputs), strict=True))
    save_arrays(stage / "vectors" / "outputs.npz", found)
    floats = (reference[n].numpy() for n in work.graph.outputs)
    save_arrays(stage / "vectors" / "reference.npz", dict(zip(names, floats, strict=True)))
    limit = _vector_limit(exported, quantized)
    emitter.companions(work.quantized, stage, work.target.order(work.source.name), limit)
    errors = {
        "by": dict(emitter.proof(work.target.device)),
        "samples": len(next(iter(inputs.values()))),
        "export": parity.compare(reference, exported),
        "quantization": parity.compare(exported, quantized),
        "engine": rows,
        "engine_outputs": parity.compare(quantized, engine),
        "total": parity.compare(reference, engine),
        "vectors_min_sqnr_db": limit,
    }
    return describe.manifest(work, emitted, stage, errors, manifest.files)


def _outputs(
    work: Build, inputs: dict[str, Tensor]
) -> tuple[parity.Outputs, parity.Outputs, parity.Outputs]:
    """Return what PyTorch, the float graph and the quantized graph give.

    Those of a language model read all weights from disk: the last runs beside the others.
    """
    graph, quantized = work.graph, work.quantized
    assert graph is not None
    assert quantized is not None

    def exact() -> tuple[parity.Outputs, ...]:
        return parity.reference_outputs(work.source.module, graph, inputs), graph.run(inputs)

    def rounded() -> tuple[parity.Outputs, ...]:
        return (quantized.run(inputs),)

    runs = (exact, rounded)
    found = [f() for f in runs] if work.source.checkpoint is None else each(_call, runs)
    (reference, exported), (last,) = found
    return reference, exported, last


def _call(run: Callable[[], tuple[parity.Outputs, ...]]) -> tuple[parity.Outputs, ...]:
    return run()


def vector_inputs(work: Build) -> dict[str, Tensor]:
    """Return the last calibration samples, or the example inputs without calibration."""
    if work.samples is None or work.source.checkpoint is not None:
        return dict(work.source.graph.inputs)
    batch = work.samples.batches[len(work.samples) - 1]
    fixed = any(0 not in work.source.graph.dynamic.get(n, {}) for n in batch)
    return {name: value if fixed else value[-VECTORS:] for name, value in batch.items()}


def _vector_limit(exported: parity.Outputs, quantized: parity.Outputs) -> float:
    """Return what another machine must reach: no more noise than quantization itself adds."""
    worst = parity.worst_db(parity.compare(exported, quantized))
    return 60.0 if worst is None else round(min(60.0, max(worst - 3.0, 3.0)), 1)
