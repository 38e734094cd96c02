"""What the user may say about an artifact, beyond target and precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class WeightOptions:
    """What the user may say about how weights are stored; what is left out is the precision's own.

    Args:
        granularity: What shares a scale or a table: ``per-tensor``, ``per-channel``, ``per-group``.
        group_size: Of ``per-group``.
        channel_scales: Palettes only: a scale a channel besides the table.
        palette_entries: Palettes only: ``fp16`` or ``int8``.
    """

    granularity: str | None = None
    group_size: int | None = None
    channel_scales: bool = False
    palette_entries: str = "fp16"


DEFAULT_WEIGHTS = WeightOptions()


@dataclass(frozen=True)
class Tuning:
    """What the user says about measuring schedules, for formats that have any.

    Args:
        trials: Candidates to measure in all; 0 for none.
        database: File or folder of results; ``None`` for the cache's, which counts only with ``trials``.
    """

    trials: int = 0
    database: Path | None = None


NO_TUNING = Tuning()


@dataclass(frozen=True)
class BlockOptions:
    """What the user says about weights in ggml's blocks.

    Args:
        tensor_types: Regular expressions of tensors' names, each with a type.
        encoder: ``qcompile``, or ``ggml`` for llama.cpp's own bytes.
        imatrix: File of importances, instead of calibration data.
        informed: Whether there is calibration data or an imatrix; some mixes then have other types.
        kv_type: Of the keys and values that the engine remembers: ``f16``, ``f32`` or ``q8_0``.
    """

    tensor_types: tuple[tuple[str, str], ...] = ()
    encoder: str = "qcompile"
    imatrix: Path | None = None
    informed: bool = False
    kv_type: str = "f16"


NO_BLOCK_OPTIONS = BlockOptions()
DEFAULT_ACTIVATIONS = 1 << 30
"""Bytes of activations that wait in memory during calibration, if the user does not limit memory."""
