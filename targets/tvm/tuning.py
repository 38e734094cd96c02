"""Tuned schedules for what TVM schedules itself: measured if asked for, then applied to the module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.device import Device, host_device
from qcompile.targets.options import NO_TUNING, Tuning
from qcompile.targets.order import Order
from qcompile.targets.tvm import libraries, shape_functions
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tools import load_tvm
from qcompile.targets.tvm.tuning_batch import for_each_image, free_sizes
from qcompile.targets.tvm.tuning_loop import tune
from qcompile.targets.tvm.tuning_records import Record, Records, open_records
from qcompile.targets.tvm.tuning_search import replay
from qcompile.targets.tvm.tuning_tasks import (
    SCHEDULED,
    Task,
    Tasks,
    lowered,
    module_of,
    plain_function,
    tasks_of,
)


@dataclass(frozen=True)
class Tuned:
    """A module with what is known applied to it.

    Args:
        module: Lowered; ``finish`` makes the rest of the way.
        notes: A sentence each.
        facts: For the manifest; empty where nobody asked for tuning.
    """

    module: Any
    notes: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)


def check(tuning: Tuning, device: Device) -> None:
    """Raise for what cannot be tuned here.

    Raises:
        TargetError: The number is negative, this machine cannot run what the device runs, or TVM's two
            packages do not fit together.
    """
    if tuning.trials < 0:
        raise TargetError(f"--tune {tuning.trials}: give the number of trials, 0 for none")
    if device.cuda_arch is not None and tuning != NO_TUNING:
        raise TargetError(
            f"schedules for GPUs are TVM's ready-made ones, and {device.name} is one: leave out --tune and "
            "--tune-database"
        )
    if tuning.trials and (why := _cannot_run(device)):
        raise TargetError(
            f"--tune measures on this machine, and it {why} of {device.name}: build on the device, or apply "
            "what was measured there with --tune 0 --tune-database FILE"
        )
    if tuning.trials or tuning.database:
        _check_packages()


def _cannot_run(device: Device) -> str:
    here = host_device()
    if here.arch != device.arch:
        return f"is {here.arch}, not the {device.arch}"
    missing = [word for word in Machine.of(device).features if word not in here.isa]
    return f"lacks {', '.join(missing)}" if missing else ""


def _check_packages() -> None:
    """Refuse pairs of packages in which writing TIR as JSON, which every search does, crashes the process."""
    tvm, ffi = libraries.versions()
    newer = tuple(int(part) for part in ffi.split(".")[:3]) >= (0, 1, 15)
    if tvm.startswith("0.27.") and newer:
        raise TargetError(
            f"apache-tvm-ffi {ffi} crashes when apache-tvm {tvm} tunes: pip install 'apache-tvm-ffi<0.1.15'"
        )


def apply(module: Any, machine: Machine, order: Order | None) -> Tuned:
    """Return an imported module, lowered, with tuned schedules where there are any.

    Args:
        module: Relax.
        machine: For whom.
        order: With what the user said of tuning; ``None`` for nothing.

    Raises:
        TargetError: The database cannot be read.
        OutputError: It cannot be written.
    """
    target = machine.target()
    tuning = order.tuning if order else NO_TUNING
    if not tuning.trials and not tuning.database:
        module = lowered(module, target)
        return Tuned(module, _untuned_notes(tasks_of(module)))
    module = lowered(module, target, for_tuning=True)
    tasks = tasks_of(module)
    must_exist = tuning.database is not None and not tuning.trials
    words = target_words(machine)
    records = open_records(tuning.database, _version(), words, must_exist=must_exist)
    if order and tuning.trials:
        tune(tasks.tunable, target, records, tuning.trials, order.on_tuning)
    applied = _Applied(module, records)
    for task in tasks.tunable:
        applied.take(task)
    notes = (*records.notes, *applied.notes(tasks), *_free_notes(tasks))
    return Tuned(applied.finished(), notes, {"trials": tuning.trials, **applied.facts()})


def target_words(machine: Machine) -> str:
    """Return what a record says of its target."""
    return " ".join([machine.arch, machine.cpu, *(f"+{word}" for word in machine.features)])


def finish(target: Any) -> Callable[[Any, Any], Any]:
    """Return the pipeline that takes a lowered module to what ``tvm.compile`` makes code of."""
    tvm = load_tvm()
    from tvm.relax.backend.cpu_generic import pipeline

    passes = [
        *pipeline.dataflow_lower_passes(target),
        *pipeline.finalize_passes(target),
        shape_functions.in_order(),
    ]

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def rest(module: Any, _: Any) -> Any:
        with target:
            return tvm.transform.Sequential(passes)(module)

    return rest  # type: ignore[no-any-return]


class _Applied:
    """A module in which functions are replaced by scheduled ones."""

    def __init__(self, module: Any, records: Records) -> None:
        self.module, self.records = module, records
        self.used: list[Record] = []
        self.scheduled: set[str] = set()
        self.operators = 0
        self.unknown = 0
        self.unfit = 0

    def take(self, task: Task) -> None:
        """Schedule a task's functions by its best record."""
        best = self.records.best(task.key)
        if best is None:
            self.unknown += 0 if self.records.of(task.key) else task.calls
            return
        schedule = replay(module_of(task.function), best)
        if schedule is None:
            self.unfit += 1
            return
        scheduled = plain_function(schedule.mod["main"])
        for symbol in task.symbols:
            ours = self.module[symbol]
            made = for_each_image(ours, scheduled) if free_sizes(ours) else scheduled
            self.module[symbol] = made.with_attr(SCHEDULED, True)
            self.scheduled.add(symbol)
        self.used.append(best)
        self.operators += task.calls

    def finished(self) -> Any:
        """Return the module, its constants in the order that the schedules want."""
        transform = load_tvm().relax.transform
        kernels = {
            symbol: function
            for symbol, function in self.module.functions_items()
            if SCHEDULED in (function.attrs or {}) and symbol.name_hint not in self.scheduled
        }
        for symbol in kernels:  # the pass refuses some functions that it has nothing to do with
            del self.module[symbol]
        module = transform.SplitLayoutRewritePreproc()(self.module)
        module.update(kernels)
        return transform.FoldConstant()(module)

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says."""
        records = [[r.task, r.trace] for r in self.used]
        text = json.dumps(records, separators=(",", ":"))
        digest = hashlib.sha256(text.encode()).hexdigest()
        return {"records": len(records), "sha256": digest}

    def notes(self, tasks: Tasks) -> list[str]:
        """Say what is tuned."""
        said = []
        if tunable := sum(task.calls for task in tasks.tunable):
            said.append(f"{self.operators} of {_operators(tunable)} that TVM schedules run tuned")
        if self.unknown:
            said.append(f"no record is of {_operators(self.unknown)}; --tune N measures more")
        if self.unfit:
            said.append(f"{self.unfit} record(s) of {self.records.file.name} could not be applied")
        return said


def _untuned_notes(tasks: Tasks) -> tuple[str, ...]:
    tunable = sum(task.calls for task in tasks.tunable)
    run = "runs" if tunable == 1 else "run"
    said = f"{_operators(tunable)} {run} TVM's default schedule; --tune N measures better ones"
    return ((said,) if tunable else ()) + _free_notes(tasks)


def _free_notes(tasks: Tasks) -> tuple[str, ...]:
    if not tasks.free:
        return ()
    count, names = sum(tasks.free.values()), ", ".join(sorted(tasks.free))
    return (
        f"{_operators(count)} of free size cannot be tuned ({names}); fix the axes to tune them",
    )


def _operators(count: int) -> str:
    return f"{count} operator" + ("s" if count != 1 else "")


def _version() -> str:
    return libraries.versions()[0]
