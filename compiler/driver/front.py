"""``--pareto``: the best plans of all sizes or times, without building any."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompile.compiler.driver import (
    language,
    plan_checks,
    planning,
    weight_plans,
    weight_sizes,
)
from qcompile.compiler.driver.build import (
    Build,
    calibration_samples,
    float_graph,
)
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.plan import BYTES, MEASURES, TIME, Plan
from qcompile.compiler.driver.plot import Axis, Series, page, svg
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import CalibrationError, OutputError, TargetError
from qcompile.passes.calibration.parallel import one_thread_per_op

PLOTS = (".svg", ".html")


@dataclass(frozen=True)
class Front:
    """Plans of growing size or time; each is the best of its size or time, by prediction.

    Args:
        model: Its name.
        target: As the user named it.
        plans: The smallest or fastest first.
        cost: What grows: ``bytes`` or ``milliseconds``.
    """

    model: str
    target: str
    plans: tuple[Plan, ...]
    cost: str = BYTES

    @property
    def title(self) -> str:
        """What the plans are."""
        kind = "size" if self.cost == BYTES else "time"
        return f"{self.model} for {self.target}: the best plan of each {kind}, by prediction"

    def table(self) -> list[list[str]]:
        """Return a row a plan, and the heading before them."""
        timed = self.plans[0].milliseconds is not None
        heading = ["bytes", "bits a weight", MEASURES[self.plans[0].measure]]
        heading += ["ms", "formats"] if timed else ["formats"]
        return [heading, *(_cells(plan) for plan in self.plans)]

    def draw(self, file: Path) -> None:
        """Write a plot: an SVG file, or HTML with the table below it; see ``check_plot``."""
        marks = [p.milliseconds if self.cost == TIME else p.bytes for p in self.plans]
        places = [(float(m or 0), p.damage or 0.0) for m, p in zip(marks, self.plans, strict=True)]
        shown = [(x, y) for x, y in places if y > 0]
        notes = [
            ", ".join(_cells(p)) for p, (_, y) in zip(self.plans, places, strict=True) if y > 0
        ]
        across = Axis("bytes of the file" if self.cost == BYTES else "ms", [x for x, _ in shown])
        upwards = Axis(MEASURES[self.plans[0].measure], [y for _, y in shown], True)
        picture = svg(self.title, across, upwards, [Series("", shown, notes, joined=True)])
        text = picture if file.suffix == ".svg" else page(self.title, picture, self.table())
        try:
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise OutputError(f"{file} cannot be written: {error.strerror}") from error

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        plans = [plan.as_json() for plan in self.plans]
        return {"model": self.model, "target": self.target, "cost": self.cost, "plans": plans}


def check_plot(file: Path, *, pareto: bool) -> None:
    """Refuse a plot that cannot be drawn, before the work.

    Raises:
        OutputError: Its folder does not exist, or it is no ``.svg`` or ``.html``.
        TargetError: Nothing is to be plotted.
    """
    if not pareto:
        raise TargetError("--plot draws what --pareto finds: give both")
    if file.suffix not in PLOTS:
        raise OutputError(f"{file} is no file that can be drawn: name it {' or '.join(PLOTS)}")
    if not file.absolute().parent.is_dir():
        raise OutputError(f"{file.absolute().parent} does not exist: make it first")


def front(source: Source, options: BuildOptions, progress: Progress | None = None) -> Front:
    """Return the plans.

    Raises:
        CalibrationError: There is no calibration data.
        QCompileError: As a build would.
    """
    target = weight_plans.planned_target(source, options.resolve(), options, wanted=True)
    plan_checks.check_names(source, options.keep_float)
    language.check_kind(source, target)
    if options.budget or options.plan_file is not None:
        raise TargetError("--pareto shows what all budgets buy: leave out the limits and --plan")
    if options.calibrate is None and source.calibration is None:
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
        problem = planning.measured_problem(work)
        plans = problem.front()
        if target.emitter.has_kernels:
            plans = weight_sizes.front(work, problem, plans)
    return Front(source.name, target.name, tuple(plans), problem.front_cost)


def _cells(plan: Plan) -> list[str]:
    """Return a plan as a row of a table."""
    counts = Counter(plan.types.values())
    kinds = ", ".join(f"{count} x {kind}" for kind, count in sorted(counts.items()))
    cells = [f"{plan.bytes:,}", f"{plan.bits_per_weight:.2f}", f"{plan.damage:.3g}"]
    if plan.milliseconds is not None:
        cells.append(f"{plan.milliseconds:.3g}")
    return [*cells, kinds]
