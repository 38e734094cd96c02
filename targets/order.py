"""What an emitter is given and what it returns: formats, orders, what its passes need, what was written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.quant import FloatSpec, QuantSpec, WeightSpec
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.device import Device
from qcompile.targets.options import NO_BLOCK_OPTIONS, NO_TUNING, BlockOptions, Tuning


@dataclass(frozen=True)
class Scheme:
    """Number formats for one precision on one device.

    Args:
        precision: As the user names it.
        weight: Of the weights of layers: integers or a palette; ``None`` for float.
        activation: Of activations; ``None`` for float.
        float_bits: Of all that stays float.
    """

    precision: str
    weight: QuantSpec | PaletteSpec | None
    activation: QuantSpec | None
    float_bits: int = 32

    @property
    def needs_calibration(self) -> bool:
        """Whether anything is chosen from data."""
        return self.weight is not None


@dataclass(frozen=True)
class Order:
    """What is to be emitted: for whom, and in which formats.

    Args:
        name: Of the model.
        device: Facts.
        scheme: Formats.
        tuning: What is to be measured.
        objects: Whether the objects of a library are wanted besides it.
        on_tuning: Told the share that is measured, and lines that say what was found.
        checkpoint: Where a language model came from.
        blocks: What the user says about weights in blocks.
        stages: Where the emitter finds what was converted before, and leaves what it converts.
    """

    name: str
    device: Device
    scheme: Scheme
    tuning: Tuning = NO_TUNING
    objects: bool = False
    checkpoint: Checkpoint | None = None
    blocks: BlockOptions = NO_BLOCK_OPTIONS
    on_tuning: Callable[[float, Sequence[str]], None] = field(default=lambda share, lines: None)
    stages: StageCache = NO_CACHE


@dataclass(frozen=True)
class Recipe:
    """What the passes of an emitter are given.

    Args:
        scheme: The formats.
        samples: Calibration data, if the scheme needs any.
        log: Filled in by quantization.
        rounding: See ``Quantize``.
        keep_float: Weights whose layers stay float.
        weights_alone: Weights in codes whose layers compute in float beside others in integers.
        max_bytes: Activations in memory.
        on_progress: Told the share of calibration that is done.
        checkpoint: Where a language model came from.
        blocks: What the user says about weights in blocks.
        work: Folder for what is done and need not be in memory.
        formats: Of a plan, by the weight's name; weights that it does not name stay float. ``None`` where all
            have the scheme's.
        stages: Where passes find what was computed before, and leave what they compute.
    """

    scheme: Scheme
    samples: Samples | None
    log: QuantizationLog
    rounding: str = "gptq"
    keep_float: frozenset[str] = frozenset()
    weights_alone: frozenset[str] = frozenset()
    max_bytes: int = 1 << 30
    on_progress: Any = field(default=lambda share: None)
    checkpoint: Checkpoint | None = None
    blocks: BlockOptions = NO_BLOCK_OPTIONS
    work: Path = Path()
    formats: Mapping[str, WeightSpec | FloatSpec] | None = None
    stages: StageCache = NO_CACHE


@dataclass(frozen=True)
class Emitted:
    """What ``emit`` wrote.

    Args:
        artifact: The file that the engine loads, relative to the folder.
        files: All files, relative.
        engine: For the manifest: ``name``, ``minimum``, ``options``.
        floats: What stays float in the engine: ``op``, ``count``, ``why``.
        tools: Versions of the packages used.
        notes: What is not as the user might expect, a sentence each.
        origins: Node of the graph by its name in the artifact, for ``engine_errors``.
        layout: What else the format's own ``engine_errors`` must know.
        outputs: What the quantized graph gives for the inputs of ``engine_errors``, by name; the driver fills
            it in.
    """

    artifact: str
    files: tuple[str, ...]
    engine: Mapping[str, Any]
    floats: tuple[Mapping[str, Any], ...]
    tools: Mapping[str, str]
    notes: tuple[str, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict)
    layout: Any = None
    outputs: Mapping[str, Any] = field(default_factory=dict)
