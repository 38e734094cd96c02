"""What a language model takes while it runs: memory and milliseconds, as limits and as gates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.compiler.driver import language
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan, with_plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.targets.plans import EngineMemory, TensorChoices, TokenTimes

if TYPE_CHECKING:
    from qcompile.compiler.driver.build import Build
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target

TRIES = 3
"""Plans whose time is measured without weights, until one is fast enough."""
_MANY = 10_000
_measured: dict[str, Any] = {}
"""What this process has asked an engine already."""


def check(source: Source, target: Target, options: BuildOptions) -> None:
    """Refuse what cannot be measured or modelled, and contexts that the model has not.

    Raises:
        TargetError: See above.
    """
    checkpoint, wanted = source.checkpoint, options.budget.context
    assert checkpoint is not None
    if wanted is not None and not 1 <= wanted <= checkpoint.context:
        raise TargetError(
            f"--context {wanted} is not between 1 and {checkpoint.context:,}, what the model takes"
        )


def context(checkpoint: Checkpoint, options: BuildOptions) -> int:
    """Return the tokens that memory has room for."""
    return options.budget.context or checkpoint.context


def with_running(found: Problem, source: Source, target: Target, options: BuildOptions) -> Problem:
    """Return a problem that knows of memory and times, if the budget asks for them.

    Raises:
        TargetError: Of this device neither is known.
        BundleError: The engine does not say it.
    """
    assert source.checkpoint is not None
    budget = options.budget
    beside, times = None, None
    if budget.max_ram is not None:
        beside = _memory(source.checkpoint, target, options).total
    if budget.needs_times:
        times = _times(source.checkpoint, target, options, found.choices)
    return dataclasses.replace(found, beside=beside, times=times)


def settled(
    work: Build, found: Problem, budget: Budget, scale: float = 1.0
) -> tuple[Problem, Plan]:
    """Return the best plan whose time holds when it is measured, and times corrected by what was.

    Args:
        work: The build.
        found: What plans are made of.
        budget: The limits.
        scale: See ``Problem.solve``.

    Raises:
        BudgetError: There is none.
    """
    plan = found.solve(budget, scale)
    if budget.max_latency is None or found.times is None or found.times.modelled:
        return found, plan
    for _ in range(TRIES):
        taken = _measured_plan(work, plan)
        if taken <= budget.max_latency:
            return found, dataclasses.replace(plan, milliseconds=taken)
        assert plan.milliseconds is not None
        found = dataclasses.replace(found, times=slower(found.times, taken / plan.milliseconds))
        plan = found.solve(budget, scale)
        assert found.times is not None
    raise BudgetError(
        f"no plan was found that keeps --max-latency {budget.max_latency:g}: the last one took {taken:.3g} "
        f"ms, and {TRIES} were measured; give more, or let nothing else run"
    )


def gates(work: Build, stage: Path, found: Problem, plan: Plan) -> list[dict[str, Any]]:
    """Return the gates of memory and time, measured with the finished artifact.

    Args:
        work: The build.
        stage: The bundle.
        found: What the plan was made of.
        plan: That was built.
    """
    budget, emitter = work.options.budget, work.target.emitter
    assert work.source.checkpoint is not None
    blocks, rows = language.block_options(work.options), []
    if budget.max_ram is not None:
        room = context(work.source.checkpoint, work.options)
        peak = emitter.measured_memory(stage, blocks, room)
        rows.append(gate("max-ram", budget.max_ram, peak, f"bytes with {room:,} tokens"))
    if budget.max_latency is not None and found.times is not None:
        taken, unit = found.milliseconds(plan.types), "ms a token, bytes over bandwidth"
        if not found.times.modelled:
            taken, unit = emitter.measured_milliseconds(stage, blocks), "ms a token"
        rows.append(gate("max-latency", budget.max_latency, taken, unit))
    return rows


def gate(name: str, limit: float, measured: float, unit: str) -> dict[str, Any]:
    """Return a gate of the manifest: what was measured may be no more than the limit."""
    message = f"{_figure(measured)} {unit}, the limit is {_figure(limit)}"
    return {
        "gate": name, "limit": limit, "measured": measured,
        "passed": measured <= limit, "message": message,
    }  # fmt: skip


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.6g}"


def _memory(checkpoint: Checkpoint, target: Target, options: BuildOptions) -> EngineMemory:
    blocks, room = language.block_options(options), context(checkpoint, options)
    key = _key(checkpoint, target, blocks.kv_type, room)
    if key not in _measured:
        _measured[key] = target.emitter.engine_memory(checkpoint, target.scheme, blocks, room)
    found: EngineMemory = _measured[key]
    return found


def _times(
    checkpoint: Checkpoint, target: Target, options: BuildOptions, choices: Sequence[TensorChoices]
) -> TokenTimes:
    blocks = language.block_options(options)
    kinds = {choice.name: [format.name for format in choice.formats] for choice in choices}
    key = _key(checkpoint, target, blocks.kv_type, kinds)
    if key not in _measured:
        given = checkpoint, target.scheme, blocks, choices, target.device
        _measured[key] = target.emitter.token_times(*given)
    found: TokenTimes = _measured[key]
    return found


def _key(checkpoint: Checkpoint, target: Target, *more: Any) -> str:
    """Return what stands for all that a measurement depends on."""
    config = dict(checkpoint.config)
    parts = str(checkpoint.path.resolve()), config, target.emitter.name, target.device.name, more
    return json.dumps(parts, sort_keys=True, default=str)


def _measured_plan(work: Build, plan: Plan) -> float:
    """Return the time of a token with a plan, measured without weights."""
    assert work.source.checkpoint is not None
    blocks = with_plan(language.block_options(work.options), plan)
    return work.target.emitter.planned_milliseconds(
        work.source.checkpoint, work.target.scheme, blocks
    )


def slower(times: TokenTimes, factor: float) -> TokenTimes:
    """Return times of which each is so many times as long."""
    of = {
        tensor: {format: factor * value for format, value in row.items()}
        for tensor, row in times.of.items()
    }
    return dataclasses.replace(times, of=of, rest=factor * times.rest)
