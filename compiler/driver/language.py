"""What a build of a language model does besides: texts, importances, and work that outlives a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import qcompile
from qcompile.compiler.driver.describe import model_sha256
from qcompile.compiler.driver.plan import Plan, with_plan
from qcompile.compiler.driver.work_folder import prefix, refuse_held, remove, siblings
from qcompile.compiler.frontend.calibration_tables import RANDOM
from qcompile.compiler.frontend.huggingface.language_model import INPUT
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.frontend.texts import Texts, read_texts
from qcompile.compiler.frontend.words import read_words
from qcompile.compiler.ir.blocks.format import FLOATS
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import CalibrationError, OutputError, TargetError
from qcompile.passes.calibration.parallel import each
from qcompile.passes.calibration.samples import Samples
from qcompile.targets.options import NO_BLOCK_OPTIONS, BlockOptions
from qcompile.targets.plans import FilePlan

if TYPE_CHECKING:
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target

WITHOUT_DATA = (
    "without calibration data the errors of all inputs count alike in {}: give --calibrate FILE (.txt, "
    ".jsonl, .npz) or --imatrix FILE for smaller errors of outputs"
)
SEQUENCE = 512
"""Tokens of a calibration sequence, as in llama-imatrix, if the model takes so many."""
BATCH = 8
"""Sequences that run at once."""


def block_options(options: BuildOptions) -> BlockOptions:
    """Return what the emitter is told."""
    informed = options.calibrate is not None or options.blocks.imatrix is not None
    return replace(options.blocks, informed=informed)


def check_kind(source: Source, target: Target) -> None:
    """Refuse a model file for a format of language models, or the other way round.

    Raises:
        TargetError: The first.
        UnsupportedError: The second.
    """
    emitter = target.emitter
    if source.checkpoint is None:
        if emitter.takes_checkpoints:
            raise TargetError(
                f"{emitter.name} stores language models: give a Hugging Face directory, not {source.where}"
            )
    elif not emitter.takes_checkpoints:
        emitter.check_checkpoint(source.checkpoint, target.scheme, NO_BLOCK_OPTIONS)


def check(source: Source, target: Target, options: BuildOptions) -> None:
    """Refuse options that do not fit a language model, before any work.

    Raises:
        QCompileError: Options that contradict each other; whatever the emitter cannot store.
    """
    emitter = target.emitter
    if source.checkpoint is None:
        return
    if options.blocks.imatrix is not None and options.calibrate is not None:
        raise CalibrationError(
            "--imatrix and --calibrate both say which inputs matter: give one of them"
        )
    if options.blocks.encoder == "ggml" and options.calibrate is not None:
        raise TargetError(
            "--encoder ggml rounds as llama-quantize does, which knows an imatrix: make one with "
            "qcompile imatrix MODEL --calibrate FILE -o FILE.gguf and give it as --imatrix"
        )
    if options.rounding == "adaround":
        raise TargetError(f"{emitter.name} rounds with nearest or gptq, not with adaround")
    _check_texts(options)
    emitter.check_checkpoint(source.checkpoint, target.scheme, block_options(options))


def _check_texts(options: BuildOptions) -> None:
    """Refuse calibration data that is none."""
    given = options.calibrate
    if given is None:
        return
    if not isinstance(given, str | Path) or str(given) == RANDOM:
        raise CalibrationError(
            "a language model is calibrated on texts: give --calibrate FILE (.txt, .jsonl, .npz)"
        )
    if not Path(given).is_file():
        raise CalibrationError(f"{given} does not exist, or is no file")
    if options.num_samples is not None and options.num_samples < 1:
        raise CalibrationError(
            f"--num-samples {options.num_samples} leaves nothing to calibrate on: give at least 1"
        )


def examine_weights(source: Source) -> None:
    """Read a language model's weights once, side by side: digests for the manifest, and NaN refused.

    Raises:
        ModelError: Names the first tensor that holds NaN or infinity.
    """
    each(source.graph.weights.sha256, source.graph.weights)


def read_samples(source: Source, options: BuildOptions) -> tuple[Samples | None, str]:
    """Return the calibration texts in batches, and a sentence that says what was used.

    Raises:
        CalibrationError: They do not fit the model.
    """
    assert source.checkpoint is not None
    if options.calibrate is None:
        return None, ""
    assert isinstance(options.calibrate, str | Path)
    length = options.seq_len or min(SEQUENCE, source.checkpoint.context)
    words = read_words(source.checkpoint.path)
    limit = options.num_samples
    texts = read_texts(Path(options.calibrate), words, length, max_sequences=limit)
    return batches(texts), texts.summary()


def batches(texts: Texts) -> Samples:
    """Return the sequences, some at a time, as the graph takes them."""
    ids = torch.from_numpy(texts.ids)
    return Samples([{INPUT: part} for part in ids.split(BATCH)], len(ids), texts.source)


def work_folder(source: Source, target: Target, options: BuildOptions, folder: Path) -> Path:
    """Return the folder for what is done; that of another build is removed.

    With ``resume`` the same model, texts and options find what a killed build left; with ``start_over`` too
    there need be nothing.

    Raises:
        OutputError: There is nothing to go on with, or another process builds the same bundle.
    """
    work = folder.parent / f"{prefix(folder)}{_key(source, target, options)}"
    left = siblings(folder)
    refuse_held(folder)
    if options.resume and not options.start_over and left and work not in left:
        raise OutputError(
            f"{left[0]} is of another model, calibration data or options: build without --resume"
        )
    for other in left:
        if other != work or not options.resume:
            remove(other, folder)
    return work


def _key(source: Source, target: Target, options: BuildOptions) -> str:
    """Return a digest of all that the blocks depend on; of files their size and time of change."""
    given = options.calibrate, options.blocks.imatrix, options.plan_file
    files = [f for f in given if isinstance(f, str | Path) and Path(f).exists()]
    if source.checkpoint is not None:
        files += sorted(source.checkpoint.path.glob("*.safetensors"))
        files += sorted(source.checkpoint.path.glob("*.json"))
    stats = [(str(Path(f).resolve()), *_stat(Path(f))) for f in files]
    said = asdict(options.blocks) | {
        "version": qcompile.__version__,
        "precision": target.scheme.precision,
        "rounding": options.rounding,
        "target": target.name,
        "model": "" if source.checkpoint else model_sha256(source.graph),
        "limits": (options.min_sqnr, options.max_drop),
        "budget": asdict(options.budget),
        "keep_float": sorted(options.keep_float),
        "samples": options.num_samples,
        "length": options.seq_len,
    }
    text = json.dumps([stats, said], default=str, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stat(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def file_plan(checkpoint: Checkpoint, target: Target, options: BuildOptions) -> FilePlan:
    """Return what the file will hold, and what a user should know before the work."""
    blocks = block_options(options)
    if options.plan_file is not None:
        blocks = with_plan(blocks, Plan.read(options.plan_file))
    found = target.emitter.plan_checkpoint(checkpoint, target.scheme, blocks, options.keep_float)
    return replace(found, notes=(*found.notes, *_without_data(found, options)))


def _without_data(planned: FilePlan, options: BuildOptions) -> list[str]:
    """Say that nothing tells which inputs matter, if that changes a weight."""
    if block_options(options).informed:
        return []
    rounded = sorted({row.format for row in planned.tensors} - set(FLOATS))
    return [WITHOUT_DATA.format(", ".join(rounded))] if rounded else []


def check_room(
    source: Source, target: Target, options: BuildOptions, folder: Path
) -> tuple[str, ...]:
    """Refuse a disk that will not hold the result, and beside it the blocks it is written from.

    Returns:
        What a user should know of the file before the work, a sentence each.

    Raises:
        OutputError: It is too small; says by how much.
    """
    checkpoint = source.checkpoint
    if checkpoint is None:
        return ()
    planned = file_plan(checkpoint, target, options)
    needed = 2 * planned.bytes
    parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OutputError(
            f"{parent} has {free:,} bytes free, and {checkpoint.path.name} needs {needed:,} while it is "
            "built; free some, or give another -o"
        )
    return () if options.budget else planned.notes
