"""``BuildOptions``: what the user may say about a build."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.driver.budget import NO_BUDGET, Budget
from qcompile.compiler.driver.target import Target, resolve
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.options import (
    DEFAULT_WEIGHTS,
    NO_BLOCK_OPTIONS,
    NO_TUNING,
    BlockOptions,
    Tuning,
    WeightOptions,
)


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What the user may say about a build.

    Args:
        target: Device, device file, ``host`` or format.
        format: Emitter, if not the device's own.
        precision: If not the device's own.
        weights: How weights are stored, beyond the precision.
        minimum_os: Oldest system that the artifact is to run on, if not the device's own.
        tuning: What is to be measured for formats that have schedules: tvm.
        objects: Also write the objects of a library, for apps that link themselves: tvm.
        rounding: ``nearest``, ``gptq`` or ``adaround``.
        calibrate: Path of calibration data, ``random``, or ``None`` for the model file's own.
        num_samples: Of the calibration data; all by default.
        seed: For choosing samples and for random data.
        keep_float: Weights whose layers stay float.
        min_sqnr: Gate: decibels of the artifact's outputs against PyTorch. Layers of integer arithmetic
            stay float where this or ``max_drop`` asks for it.
        max_drop: Gate: how much the first metric of ``evaluate`` may fall.
        evaluate: Whether to run the model file's ``evaluate`` before and after.
        max_host_ram: Bytes of memory: of a language model's build all that it takes, of others activations
            during calibration; activations beyond wait on disk. ``None`` for 1 GiB of activations.
        blocks: How a language model's weights are stored: gguf; ``tensor_types`` pins weights of a plan.
        budget: What the artifact may take, and how far it may be from the original.
        plan_file: A plan to build, instead of the precision's own formats.
        save_plan: File for the plan that was built.
        seq_len: Tokens of a language model's calibration sequences.
        resume: Go on with what a killed build left, of a language model or under a budget.
        start_over: With ``resume``: remove what is left of another model, data or options, and begin anew.
        dump_ir: Folder for the IR text after each pass.
    """

    target: str
    format: str | None = None
    precision: str | None = None
    weights: WeightOptions = DEFAULT_WEIGHTS
    minimum_os: str | None = None
    tuning: Tuning = NO_TUNING
    objects: bool = False
    rounding: str = "gptq"
    calibrate: str | Path | Mapping[str, Any] | None = None
    num_samples: int | None = None
    seed: int = 0
    keep_float: frozenset[str] = frozenset()
    min_sqnr: float | None = None
    max_drop: float | None = None
    evaluate: bool = True
    max_host_ram: int | None = None
    blocks: BlockOptions = NO_BLOCK_OPTIONS
    budget: Budget = NO_BUDGET
    plan_file: Path | None = None
    save_plan: Path | None = None
    seq_len: int | None = None
    resume: bool = False
    start_over: bool = False
    dump_ir: Path | None = None

    @property
    def gated(self) -> bool:
        """Whether there are limits of quality that a plan can keep."""
        return self.min_sqnr is not None or self.max_drop is not None

    @property
    def plans(self) -> bool:
        """Whether each weight gets a format of its own."""
        by_gates = self.budget.optimize == "size" and self.gated
        return bool(self.budget) or self.plan_file is not None or by_gates

    def resolve(self) -> Target:
        """Return the target that they name.

        Raises:
            TargetError: A word is unknown, or the words do not fit each other.
        """
        found = resolve(
            self.target,
            format=self.format,
            precision=self.precision,
            weights=self.weights,
            minimum_os=self.minimum_os,
        )
        if self.objects and not found.emitter.has_objects:
            raise TargetError(f"{found.emitter.name} has no objects: leave out --objects")
        return found.tuned(self.tuning)
