"""The loop with a measurer that only counts: it stops, goes on, and ends where nothing is left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.targets.device import load_device
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.tuning_loop import tune
from qcompile.targets.tvm.tuning_measure import Measurer
from qcompile.targets.tvm.tuning_records import Records, open_records
from qcompile.targets.tvm.tuning_tasks import Task, lowered, tasks_of

pytest.importorskip("tvm", reason="apache-tvm is not installed")


class Fake:
    """Stands in for the measurer; each call is faster than the one before.

    Args:
        stop_at: The call that Ctrl-C comes in; ``None`` for never.
    """

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at, self.calls = stop_at, 0

    def __call__(self, _: Measurer, module: str) -> float:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return 1e-3 / self.calls


@pytest.fixture(scope="module")
def target(can_tune: None) -> Any:
    """Any CPU: nothing runs."""
    return Machine.of(load_device("x86-avx2")).target()


def _tasks(module: nn.Module, target: Any) -> list[Task]:
    from tvm.relax.frontend.torch import from_exported_program

    program = torch.export.export(module, (torch.zeros(2, 24),)).run_decompositions()
    return tasks_of(lowered(from_exported_program(program), target)).tunable


def _records(folder: Path) -> Records:
    return open_records(folder, "1", "t", must_exist=False)


def _quiet(share: float, lines: Sequence[str]) -> None:
    """Hear nothing."""


def test_goes_on_after_ctrl_c(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = _tasks(nn.Sequential(nn.Linear(24, 8), nn.Softmax(1)), target)
    first = Fake(stop_at=len(tasks) + 4)
    monkeypatch.setattr(Measurer, "measure", lambda self, module: first(self, module))
    with pytest.raises(KeyboardInterrupt, match=r"3 of 10 trials are kept in .*tuning.jsonl; run"):
        tune(tasks, target, _records(tmp_path), 10, _quiet)
    second, said = Fake(), []
    monkeypatch.setattr(Measurer, "measure", lambda self, module: second(self, module))
    tune(tasks, target, _records(tmp_path), 10, lambda share, lines: said.append((share, lines)))
    assert second.calls == 7
    assert said[-1][0] == 1.0
    assert said[-1][1][0] == "10 of 10 trials, about 0:00 left"
    assert len(said[-1][1]) == 1 + len(tasks)
    records = _records(tmp_path)
    traces = [str(r.trace) for r in records.found if r.is_trial]
    assert len(traces) == len(set(traces)) == 10
    third = Fake()
    monkeypatch.setattr(Measurer, "measure", lambda self, module: third(self, module))
    tune(tasks, target, records, 10, _quiet)
    assert third.calls == 0


def test_ends_where_nothing_new_is_found(
    target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = _tasks(nn.ReLU(), target)
    fake = Fake()
    monkeypatch.setattr(Measurer, "measure", lambda self, module: fake(self, module))
    tune(tasks, target, _records(tmp_path), 1000, _quiet)
    records = _records(tmp_path)
    assert 0 < sum(r.is_trial for r in records.found) < 1000
    assert records.found[-1].trace == []
    before = fake.calls
    tune(tasks, target, records, 1000, _quiet)
    assert fake.calls == before
