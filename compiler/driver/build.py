"""The build, as a recipe: load, passes, emit, verify, bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompile.compiler.driver import describe, language, parity, quality, write
from qcompile.compiler.driver.bundle import Bundle
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.driver.target import Target
from qcompile.compiler.frontend.calibration import load_samples
from qcompile.compiler.frontend.calibration_tables import RANDOM
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import (
    CalibrationError,
    GateError,
    ModelError,
    OutputError,
    QCompileError,
)
from qcompile.compiler.ir.graph import Graph
from qcompile.passes import base
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.session import Session
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.order import Emitted, Order, Recipe

VECTORS = 16
"""Samples in ``vectors/``."""


@dataclass
class Build:
    """A build under way: what each stage leaves for the next.

    Args:
        source: The model.
        options: The user's.
        target: What they mean.
        progress: Told what happens.
        folder: For what a killed build of a language model leaves.
        read: What was read of its texts, and what was not.
        notes: What was said of its file before the work.
    """

    source: Source
    options: BuildOptions
    target: Target
    progress: Progress
    samples: Samples | None = None
    graph: Graph | None = None
    quantized: Graph | None = None
    log: QuantizationLog = field(default_factory=QuantizationLog)
    records: list[base.PassRecord] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    folder: Path = Path()
    read: str = ""
    notes: tuple[str, ...] = ()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        self.progress.stage(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def build(
    source: Source,
    folder: Path,
    options: BuildOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Compile a model into a bundle.

    Args:
        source: The model.
        folder: The bundle, ``NAME.qc``; it appears at once, whole.
        options: The user's.
        force: Replace a bundle that is there.
        progress: Told what happens.

    Raises:
        GateError: A gate failed; the bundle is kept beside as ``NAME.qc.rejected``.
        QCompileError: The input, the options or the environment are wrong; nothing was written.
    """
    target = options.resolve()
    work = Build(source, options, target, progress or Progress())
    write.check_destination(folder, force=force)
    quality.check_options(source, options.max_drop, options.evaluate)
    check_names(source, options.keep_float)
    target.emitter.check_machine(target.device)
    language.check_kind(source, target)
    target.emitter.check(source.graph, target.device)
    language.check(source, target, options)
    work.notes = language.check_room(source, target, options, folder)
    with _one_thread_per_op(), _work_folder(work, folder), write.staged(folder) as stage:
        with work.stage("calibration data"):
            work.samples, work.read = calibration_samples(source, target, options)
        for text in work.notes:
            work.progress.note(text)
        with work.stage("passes"):
            run_passes(work)
        with work.stage("emit"):
            assert work.quantized is not None
            emitted = target.emitter.emit(work.quantized, stage, _order(work))
            write.write_runtime(stage / "run.pyz")
        with work.stage("verify"):
            manifest = verify(work, stage, emitted)
        with work.stage("evaluate"):
            manifest = quality.evaluate(work, stage, manifest)
        write.seal(stage, manifest)
        return _publish(work, stage, folder, manifest)


def _order(work: Build) -> Order:
    return replace(
        work.target.order(work.source.name),
        objects=work.options.objects,
        on_tuning=work.progress.measured,
        checkpoint=work.source.checkpoint,
        blocks=language.block_options(work.options),
    )


@contextmanager
def _work_folder(work: Build, folder: Path) -> Iterator[None]:
    """Give a language model's build a folder that a killed build leaves, and a finished one does not."""
    if work.source.checkpoint is None:
        yield
        return
    work.folder = language.work_folder(work.source, work.target, work.options, folder)
    try:
        yield
    except OutputError:  # the disk is full: what is done will be of use
        raise
    except QCompileError:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise
    shutil.rmtree(work.folder, ignore_errors=True)


def check_names(source: Source, keep_float: frozenset[str]) -> None:
    """Refuse names of weights that the model does not have.

    Raises:
        ModelError: Names them, and those that there are.
    """
    if unknown := sorted(keep_float - set(source.graph.weights)):
        raise ModelError(
            f"the model has no weight {', '.join(unknown)}; "
            f"its weights are {', '.join(source.graph.weights)}"
        )


def calibration_samples(
    source: Source, target: Target, options: BuildOptions
) -> tuple[Samples | None, str]:
    """Return the calibration data that the scheme needs, or ``None``, and what is to be said of it.

    Raises:
        CalibrationError: There is none, or it does not fit.
    """
    if source.checkpoint is not None:
        return language.read_samples(source, options)
    if not target.scheme.needs_calibration:
        return None, ""
    given: Any = options.calibrate
    if given is None and source.calibration is not None:
        given = source.calibration()
    if given is None:
        raise CalibrationError(
            f"{target.scheme.precision} needs calibration data: give --calibrate FILE "
            "(.npz, .npy, .safetensors, a folder of .npy), or calibration() in the model file; "
            f"--calibrate {RANDOM} is for trying things out"
        )
    found = load_samples(source.graph, given, num_samples=options.num_samples, seed=options.seed)
    return found, ""


def run_passes(work: Build) -> None:
    """Make the float graph and the quantized graph."""
    dump = work.options.dump_ir
    options = base.RunOptions(dump=dump, on_start=lambda name: work.progress.stage(name))
    work.graph = work.source.graph.copy()
    work.records = base.run(work.graph, work.target.emitter.float_passes(), options)
    recipe = Recipe(
        scheme=work.target.scheme,
        samples=work.samples,
        log=work.log,
        rounding=work.options.rounding,
        keep_float=work.options.keep_float,
        max_bytes=work.options.max_host_ram,
        on_progress=work.progress.share,
        checkpoint=work.source.checkpoint,
        blocks=language.block_options(work.options),
        work=work.folder,
    )
    work.quantized = work.graph.copy()
    own = base.RunOptions(dump=dump and dump / "target", on_start=options.on_start)
    work.records += base.run(work.quantized, work.target.emitter.passes(recipe), own)


def verify(work: Build, stage: Path, emitted: Emitted) -> Manifest:
    """Measure the three errors, write the vectors, and return the manifest."""
    assert work.graph is not None
    assert work.quantized is not None
    emitter = work.target.emitter
    arrays = emitter.to_engine(work.graph, _vector_inputs(work))
    inputs = emitter.from_engine(work.graph, arrays)
    reference = parity.reference_outputs(work.source.module, work.graph, inputs)
    exported, quantized = work.graph.run(inputs), work.quantized.run(inputs)
    rows = emitter.engine_errors(work.quantized, stage, emitted, arrays)
    (stage / "vectors").mkdir()
    save_arrays(stage / "vectors" / "inputs.npz", arrays)
    manifest = describe.manifest(work, emitted, stage, {})
    write.seal(stage, manifest)
    session = Session(stage, check_files=False, engine=emitter.engine_class())
    engine = parity.engine_outputs(session, arrays, work.graph.outputs)
    names = [o.name for o in emitter.outputs(work.graph)]
    found = dict(zip(names, (engine[n].numpy() for n in work.graph.outputs), strict=True))
    save_arrays(stage / "vectors" / "outputs.npz", found)
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
    return describe.manifest(work, emitted, stage, errors)


def _publish(work: Build, stage: Path, folder: Path, manifest: Manifest) -> Bundle:
    bundle = Bundle(folder, manifest, work.seconds)
    if bundle.passed:
        write.publish(stage, folder)
        return bundle
    rejected = folder.with_name(f"{folder.name}.rejected")
    write.publish(stage, rejected)
    raise GateError(
        f"{'; '.join(bundle.failures)}; the bundle is kept as {rejected}",
        Bundle(rejected, manifest, work.seconds),
    )


def _vector_inputs(work: Build) -> dict[str, Tensor]:
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


@contextmanager
def _one_thread_per_op() -> Iterator[None]:
    """Let the sums inside an op be in one order whatever the machine, so bytes do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
