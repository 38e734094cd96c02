"""The tuning itself: which task is next, measuring its candidates, telling of it, stopping."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.tvm.tools import load_tvm
from qcompile.targets.tvm.tuning_measure import Measurer
from qcompile.targets.tvm.tuning_records import Record, Records
from qcompile.targets.tvm.tuning_search import Search
from qcompile.targets.tvm.tuning_tasks import Task, module_of

Report = Callable[[float, Sequence[str]], None]
ROUND = 8
"""Candidates of a task before the next one is chosen."""
BETTER = 0.98
"""What a round must make of the best time, or less, to count as progress."""


def tune(tasks: Sequence[Task], target: Any, records: Records, trials: int, report: Report) -> None:
    """Measure until so many trials of these tasks are recorded, or no search finds anything new.

    Args:
        tasks: To tune.
        target: TVM's; this machine must be able to run it.
        records: What is known, and where results go.
        trials: Candidates in all, those that are recorded included.
        report: Told the share that is done, and lines for people.

    Raises:
        TargetError: Nothing can be measured here.
        OutputError: The database cannot be written.
        KeyboardInterrupt: The user's; all that was measured is kept.
    """
    state = _State(tasks, records, trials, report)
    if state.done >= trials or not state.open_tasks():
        return
    try:
        with Measurer(str(target)) as measurer:
            _tune(state, target, measurer)
    except KeyboardInterrupt as stop:
        kept = f"{state.done} of {trials} trials are kept in {records.file}"
        raise KeyboardInterrupt(f"{kept}; run the same command again to go on") from stop


class _State:
    """What is known while tuning."""

    def __init__(
        self, tasks: Sequence[Task], records: Records, trials: int, report: Report
    ) -> None:
        self.tasks, self.records, self.trials, self.report = tasks, records, trials, report
        self.first = self.done
        self.start = time.monotonic()
        self.searches: dict[str, Search] = {}

    @property
    def done(self) -> int:
        """Trials that are recorded."""
        return sum(r.is_trial for task in self.tasks for r in self.records.of(task.key))

    def open_tasks(self) -> list[Task]:
        """Return the tasks whose search is not at its end."""
        return [t for t in self.tasks if not any(r.trace == [] for r in self.records.of(t.key))]

    def next_task(self) -> Task:
        """Return the task where another round may gain most."""
        return max(self.open_tasks(), key=lambda task: _promise(task, self.records))

    def tell(self) -> None:
        """Report."""
        done = self.done
        left = max(0, self.trials - done)
        spent = time.monotonic() - self.start
        lines = [f"{done} of {self.trials} trials"]
        if done > self.first:
            lines[0] += f", about {_clock(left * spent / (done - self.first))} left"
        lines += [_line(task, self.records) for task in self.tasks]
        self.report(min(1.0, done / self.trials), lines)


def _tune(state: _State, target: Any, measurer: Measurer) -> None:
    state.tell()
    _measure_defaults(state, measurer)
    while state.done < state.trials and state.open_tasks():
        _round(state, state.next_task(), target, measurer)


def _measure_defaults(state: _State, measurer: Measurer) -> None:
    """Measure the schedules that tuned ones must beat."""
    known = {task.key: state.records.of(task.key) for task in state.tasks}
    for task in state.tasks:
        if any(record.trace is None for record in known[task.key]):
            continue
        seconds = measurer.measure(load_tvm().ir.save_json(module_of(task.function)))
        if seconds is not None:
            state.records.append(Record(task.key, task.name, seconds, None))
        state.tell()
    if not any(record.seconds for task in state.tasks for record in state.records.of(task.key)):
        raise TargetError(f"--tune can measure no operator on this machine: {measurer.error}")


def _round(state: _State, task: Task, target: Any, measurer: Measurer) -> None:
    """Measure some candidates of a task."""
    known = state.records.of(task.key)
    search = state.searches.get(task.key)
    if search is None:
        search = Search(task, target, known, seed=1 + len(known), size=ROUND)
        state.searches[task.key] = search
    proposed = search.propose(min(ROUND, state.trials - state.done))
    if not proposed:
        state.records.append(Record(task.key, task.name, None, []))
    found: dict[str, float | None] = {}
    for text, schedule in proposed.items():
        found[text] = measurer.measure(load_tvm().ir.save_json(schedule.mod))
        state.records.append(Record(task.key, task.name, found[text], json.loads(text)))
        state.tell()
    if proposed:
        search.tell(found)


def _promise(task: Task, records: Records) -> float:
    """Return the seconds that a task costs the model, halved for each round without progress.

    A task that nobody tried comes first, the most costly before others.
    """
    timed = [r for r in records.of(task.key) if r.seconds is not None]
    default = [r.seconds for r in timed if r.trace is None and r.seconds is not None]
    trials = [r for r in records.of(task.key) if r.is_trial]
    best = min((r.seconds for r in timed if r.seconds is not None), default=1.0)
    cost = task.calls * best
    if not trials:
        return 1e6 * task.calls * (default[0] if default else 1.0)
    return float(cost * 0.5 ** _idle_rounds(trials))


def _idle_rounds(trials: Sequence[Record]) -> int:
    """Return how many rounds ago a task last got faster."""
    best, last = float("inf"), 0
    for index, record in enumerate(trials):
        if record.seconds is not None and record.seconds < BETTER * best:
            best, last = record.seconds, index
    return (len(trials) - 1 - last) // ROUND


def _line(task: Task, records: Records) -> str:
    known = records.of(task.key)
    default = next((r.seconds for r in known if r.trace is None), None)
    best = min((r.seconds for r in known if r.seconds is not None), default=None)
    trials = sum(r.is_trial for r in known)
    times = f"{_us(best)} us, TVM's default {_us(default)} us"
    return f"{task.calls} x {task.name}: {times}, {trials} trials"


def _us(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e6:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
