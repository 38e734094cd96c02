"""``--pareto``: the best plans of all sizes, without building any."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.driver import language, planning
from qcompile.compiler.driver.build import (
    Build,
    calibration_samples,
    check_names,
    float_graph,
    one_thread_per_op,
)
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import CalibrationError, TargetError

POINTS = 16


@dataclass(frozen=True)
class Front:
    """Plans of growing size; each is the best of its size, by prediction.

    Args:
        model: Its name.
        target: As the user named it.
        plans: The smallest first.
    """

    model: str
    target: str
    plans: tuple[Plan, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        plans = [plan.as_json() for plan in self.plans]
        return {"model": self.model, "target": self.target, "plans": plans}


def front(source: Source, options: BuildOptions, progress: Progress | None = None) -> Front:
    """Return the plans.

    Raises:
        CalibrationError: There is no calibration data.
        QCompileError: As a build would.
    """
    target = options.resolve()
    check_names(source, options.keep_float)
    language.check_kind(source, target)
    if source.checkpoint is None:
        raise TargetError("--pareto plans language models so far, and this is none")
    if options.budget or options.plan_file is not None:
        raise TargetError("--pareto shows what all budgets buy: leave out the limits and --plan")
    if options.calibrate is None:
        raise CalibrationError(
            "--pareto needs calibration data, which says what each format would cost: give --calibrate FILE"
        )
    target.emitter.check(source.graph, target.device)
    language.check(source, target, options)
    work = Build(source, options, target, progress or Progress())
    with one_thread_per_op(), tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        work.folder = Path(folder)
        work.samples, work.read = calibration_samples(source, target, options)
        float_graph(work)
        plans = planning.measured_problem(work).front(POINTS)
    return Front(source.name, target.name, tuple(plans))
