"""The build, as a recipe: load, passes, emit, verify, bundle."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompile.compiler.driver import (
    float_layers,
    language,
    memory,
    plan_checks,
    planning,
    quality,
    verification,
    weight_plans,
    write,
)
from qcompile.compiler.driver.bundle import Bundle
from qcompile.compiler.driver.closeness import Predictions
from qcompile.compiler.driver.float_search import FloatLayers
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.driver.target import Target
from qcompile.compiler.driver.work_folder import held
from qcompile.compiler.frontend.calibration import load_samples
from qcompile.compiler.frontend.calibration_tables import RANDOM
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import (
    CalibrationError,
    GateError,
    OutputError,
    QCompileError,
)
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.passes import base
from qcompile.passes.calibration.parallel import one_thread_per_op
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.mixed_precision.integer_trial import Prepared
from qcompile.passes.mixed_precision.trial_store import TrialStore
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.runtime.manifest import Manifest
from qcompile.targets.options import DEFAULT_ACTIVATIONS
from qcompile.targets.order import Order, Recipe


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
        planned: The formats of its tensors, if they are not the precision's own.
        stages: What builds have in common.
        predictions: By what an artifact is judged, once that is known.
        trials: Weights in all of their formats, once there are any.
        sizes: Bytes of artifacts that were compiled to know them, by tensors and formats.
        prepared: The graph before observers are placed, where layers may stay float for a limit of quality.
        float_search: Which those are, once all in integers have missed it.
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
    planned: planning.Planned | None = None
    stages: StageCache = NO_CACHE
    predictions: Predictions | None = None
    trials: TrialStore | None = None
    sizes: dict[tuple[tuple[str, str], ...], int] = field(default_factory=dict)
    prepared: Prepared | None = None
    float_search: FloatLayers | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        self.progress.stage(name)
        start = time.perf_counter()
        yield
        seconds = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(seconds, 3)


def build(
    source: Source,
    folder: Path,
    options: BuildOptions,
    *,
    force: bool = False,
    progress: Progress | None = None,
    stages: StageCache = NO_CACHE,
) -> Bundle:
    """Compile a model into a bundle.

    Args:
        source: The model.
        folder: The bundle, ``NAME.qc``; it appears at once, whole.
        options: The user's.
        force: Replace a bundle that is there.
        progress: Told what happens.
        stages: What other builds have computed and this one needs too.

    Raises:
        GateError: A gate failed; the bundle is kept beside as ``NAME.qc.rejected``.
        QCompileError: The input, the options or the environment are wrong; nothing was written.
    """
    target = weight_plans.planned_target(source, options.resolve(), options)
    work = Build(source, options, target, progress or Progress(), stages=stages)
    write.check_destination(folder, force=force)
    quality.check_options(source, options.max_drop, options.evaluate)
    plan_checks.check_names(source, options.keep_float)
    target.emitter.check_machine(target.device)
    language.check_kind(source, target)
    target.emitter.check(source.graph, target.device)
    language.check(source, target, options)
    plan_checks.check(source, target, options)
    work.notes = language.check_room(source, target, options, folder)
    with one_thread_per_op(), write.staged(folder) as stage, _work_folder(work, folder):
        if options.max_drop is not None:
            with work.stage("evaluate"):
                quality.check_noise(work)
        with work.stage("calibration data"):
            work.samples, work.read = calibration_samples(source, target, options)
        for text in work.notes:
            work.progress.note(text)
        if source.checkpoint is not None:
            with work.stage("weights"):
                language.examine_weights(source)
        manifest = _attempt(work, stage)
        while planning.repair(work) or float_layers.repair(work, manifest):
            write.empty(stage)
            manifest = _attempt(work, stage)
        planning.save(work)
        write.seal(stage, manifest)
        return _publish(work, stage, folder, manifest, force=force)


def _attempt(work: Build, stage: Path) -> Manifest:
    """Make a bundle in ``stage`` and measure it; return what its manifest says."""
    _quantize(work)
    while float_layers.foreseen(work):
        _quantize(work)
    with work.stage("emit"):
        assert work.quantized is not None
        emitted = work.target.emitter.emit(work.quantized, stage, _order(work))
        write.write_runtime(stage / "run.pyz")
    with work.stage("verify"):
        manifest = verification.verify(work, stage, emitted)
    with work.stage("evaluate"):
        return planning.measure(work, stage, quality.evaluate(work, stage, manifest))


def _quantize(work: Build) -> None:
    """Make both graphs anew."""
    work.log, work.records = QuantizationLog(), []
    with work.stage("passes"):
        run_passes(work)


def _order(work: Build) -> Order:
    return replace(
        work.target.order(work.source.name),
        objects=work.options.objects,
        on_tuning=work.progress.measured,
        checkpoint=work.source.checkpoint,
        blocks=planning.blocks(work),
        stages=work.stages,
    )


@contextmanager
def _work_folder(work: Build, folder: Path) -> Iterator[None]:
    """Give a long build a folder that it leaves when it is killed, and does not when it is finished."""
    if work.source.checkpoint is None and not work.options.plans:
        yield
        return
    work.folder = language.work_folder(work.source, work.target, work.options, folder)
    with held(work.folder, folder):
        try:
            yield
        except OutputError:  # the disk is full: what is done will be of use
            raise
        except QCompileError:
            shutil.rmtree(work.folder, ignore_errors=True)
            raise
        shutil.rmtree(work.folder, ignore_errors=True)


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


def float_graph(work: Build) -> None:
    """Make the float graph."""
    options = _run_options(work, work.options.dump_ir)
    work.graph = work.source.graph.copy()
    work.records = base.run(work.graph, work.target.emitter.float_passes(), options)


def _run_options(work: Build, dump: Path | None) -> base.RunOptions:
    return base.RunOptions(dump=dump, on_start=lambda name: work.progress.stage(name))


def run_passes(work: Build) -> None:
    """Make the float graph and the quantized graph."""
    float_graph(work)
    max_bytes = _activation_bytes(work)
    planning.choose(work)
    dump = work.options.dump_ir
    recipe = Recipe(
        scheme=work.target.scheme,
        samples=work.samples,
        log=work.log,
        rounding=work.options.rounding,
        keep_float=float_layers.kept(work),
        weights_alone=float_layers.coded(work),
        max_bytes=max_bytes,
        on_progress=work.progress.share,
        checkpoint=work.source.checkpoint,
        blocks=planning.blocks(work),
        work=planning.folder(work),
        formats=planning.formats(work),
        stages=work.stages,
    )
    assert work.graph is not None
    work.quantized = work.graph.copy()
    passes = work.target.emitter.passes(recipe)
    own = replace(
        _run_options(work, dump and dump / "target"), on_start=float_layers.watching(work, passes)
    )
    work.records += base.run(work.quantized, passes, own)
    float_layers.record(work)


def _activation_bytes(work: Build) -> int:
    """Return how many bytes of activations may wait in memory."""
    limit = work.options.max_host_ram
    if work.source.checkpoint is None:
        return DEFAULT_ACTIVATIONS if limit is None else limit
    assert work.graph is not None
    feedback = work.options.rounding != "nearest"
    return memory.activation_bytes(work.graph, work.samples, limit, feedback=feedback)


def _publish(work: Build, stage: Path, folder: Path, manifest: Manifest, *, force: bool) -> Bundle:
    bundle = Bundle(folder, manifest, work.seconds)
    if bundle.passed:
        write.publish(stage, folder, force=force)
        return bundle
    rejected = folder.with_name(f"{folder.name}.rejected")
    write.publish(stage, rejected, force=True)
    raise GateError(
        f"{'; '.join(bundle.failures)}{float_layers.said(work)}; the bundle is kept as {rejected}",
        Bundle(rejected, manifest, work.seconds),
    )
