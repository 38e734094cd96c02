"""What a model that is no language model takes while it runs.

Its artifact is measured in its engine; where that is not here, it is modelled from facts about the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.compiler.driver import (
    describe,
    roofline,
    running,
    verification,
    weight_plans,
    write,
)
from qcompile.compiler.driver.activations import peak_activation_bytes
from qcompile.compiler.driver.bench import bench
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.ir.errors import TargetError
from qcompile.passes import base
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.device import HOST
from qcompile.targets.order import Recipe
from qcompile.targets.times import shared_times, uniform_plans

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build
    from qcompile.compiler.driver.target import Target

RUNS = 100
"""Calls that are timed of an artifact."""
_MS, _MIB = 1e-3, 1 << 20


def check(target: Target, budget: Budget) -> None:
    """Refuse limits that can be neither measured on this machine nor modelled.

    Raises:
        TargetError: Says which, and what can be given.
    """
    asked, problems = target.emitter.runs_here(target.device) or is_modelled(target), []
    if budget.context is not None:
        problems.append("--context is of language models, and this is none")
    if budget.max_ram is not None and not asked:
        problems.append(
            f"what {target.emitter.name} for {target.name} takes can be neither measured here nor "
            "modelled, so there is no --max-ram: give --max-size, or --target host --format onnx or tvm"
        )
    if budget.needs_times and not (is_modelled(target) or (asked and target.device.name == HOST)):
        problems.append(
            f"how long {target.emitter.name} takes on {target.name} can be neither measured here nor "
            "modelled: leave out --max-latency and --optimize latency, or give --target host --format onnx "
            "or tvm, or a device with a Neural Engine whose file has its peak and that of its memory"
        )
    if problems:
        raise TargetError("; ".join(problems))


def is_modelled(target: Target) -> bool:
    """Return whether memory and time are modelled from facts about the device."""
    return target.emitter.neural_engine and roofline.knows(target.device)


def with_running(work: Build, found: Problem) -> Problem:
    """Return a problem that knows of memory and times, if the budget asks for them.

    An artifact of each format is made without data and measured: neither memory nor time depends on how
    weights were rounded. What such an artifact takes besides its file differs; the least of it is assumed,
    and corrected by what is measured of the finished artifact.

    Args:
        work: With its float graph and calibration data.
        found: What plans are made of.
    """
    budget, beside, times = work.options.budget, None, None
    if budget.max_ram is None and not budget.needs_times:
        return found
    if is_modelled(work.target):
        return _modelled(work, found)
    work.progress.stage("memory and time of formats")
    plans = uniform_plans(found.choices)
    measured = {kind: _measured(work, plan) for kind, plan in plans.items()}
    if budget.max_ram is not None:
        beside = min(int(m.peak_rss_mib * _MIB) - m.bytes for m in measured.values())
    if budget.needs_times:
        numbers = {c.name: float(sum(map(prod, c.tensors.values()))) for c in found.choices}
        taken = {kind: m.p50 * _MS for kind, m in measured.items()}
        times = shared_times(numbers, found.choices, taken)
    return replace(found, beside=beside, times=times)


def gates(work: Build, stage: Path, size: int) -> list[dict[str, Any]]:
    """Return the gates of memory and time of the finished artifact, which has so many bytes."""
    budget, rows = work.options.budget, []
    if budget.max_ram is None and budget.max_latency is None:
        return []
    if is_modelled(work.target):
        return _modelled_gates(work, size)
    found = bench(stage, runs=RUNS)
    where = f"on this machine, {found.engine}"
    if budget.max_ram is not None:
        peak = int(found.peak_rss_mib * _MIB)
        rows.append(running.gate("max-ram", budget.max_ram, peak, f"bytes of a process {where}"))
    if budget.max_latency is not None:
        taken, unit = found.p50 * _MS, f"ms a call of one sample {where}"
        rows.append(running.gate("max-latency", budget.max_latency, taken, unit))
    return rows


def corrected(
    problem: Problem, plan: Plan, gates: Mapping[str, Mapping[str, Any]], off: int
) -> Problem:
    """Return a problem that has learned what an artifact took beyond what was predicted of its plan.

    Args:
        problem: What the plan was made of.
        plan: That was built.
        gates: That were measured, by name.
        off: Bytes that the artifact has beyond those of the plan; the problem knows of them.
    """
    if problem.beside is not None and plan.ram is not None and "max-ram" in gates:
        more = int(gates["max-ram"]["measured"]) - plan.ram - off
        problem = replace(problem, beside=problem.beside + max(0, more))
    if problem.times is not None and plan.milliseconds and "max-latency" in gates:
        factor = max(1.0, float(gates["max-latency"]["measured"]) / plan.milliseconds)
        problem = replace(problem, times=running.slower(problem.times, factor))
    return problem


def _modelled(work: Build, found: Problem) -> Problem:
    assert work.graph is not None
    graph, budget, width = work.graph, work.options.budget, work.target.scheme.float_bits // 8
    beside, times = None, None
    if budget.max_ram is not None:
        beside = peak_activation_bytes(graph, (), width)
    if budget.needs_times:
        device, ops = work.target.device, roofline.ops(graph)
        times = roofline.call_times(graph, ops, found.choices, device, width)
    return replace(found, beside=beside, times=times)


def _modelled_gates(work: Build, size: int) -> list[dict[str, Any]]:
    assert work.planned is not None
    budget, device, rows = work.options.budget, work.target.device.name, []
    found = work.planned.problem
    if found is None:  # of a plan that was read
        found = _modelled(work, weight_plans.problem(work, weight_plans.choices(work)))
    if budget.max_ram is not None:
        assert found.beside is not None
        unit = "bytes of weights and activations, modelled: the engine is not among them"
        rows.append(running.gate("max-ram", budget.max_ram, size + found.beside, unit))
    if budget.max_latency is not None:
        taken = found.milliseconds(work.planned.plan.types)
        unit = f"ms a call, modelled from the peaks of {device}'s memory and Neural Engine"
        rows.append(running.gate("max-latency", budget.max_latency, taken, unit))
    return rows


@dataclass(frozen=True)
class _Measured:
    """What an artifact takes, and the bytes of its file."""

    p50: float
    peak_rss_mib: float
    bytes: int


def _measured(work: Build, types: Mapping[str, str]) -> _Measured:
    """Return what an artifact takes whose weights have these formats."""
    assert work.graph is not None
    emitter, graph, log = work.target.emitter, work.graph.copy(), QuantizationLog()
    formats = weight_plans.formats(work, types)
    recipe = Recipe(work.target.scheme, work.samples, log, rounding="nearest", formats=formats)
    base.run(graph, emitter.passes(recipe), base.RunOptions(check=False))
    trial = replace(work, quantized=graph, log=log)
    with tempfile.TemporaryDirectory(prefix="qcompile-") as name:
        stage = Path(name)
        emitted = emitter.emit(graph, stage, work.target.order(work.source.name))
        (stage / "vectors").mkdir()
        inputs = emitter.to_engine(work.graph, verification.vector_inputs(work))
        save_arrays(stage / "vectors" / "inputs.npz", inputs)
        manifest = describe.manifest(trial, emitted, stage, {})
        write.write_manifest(stage, manifest)
        found = bench(stage, runs=RUNS)
    return _Measured(found.p50, found.peak_rss_mib, manifest.sizes["artifact_bytes"])
