"""Tuned libraries: they compute what PyTorch does, and the same database gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qcompile.targets.options import Tuning
from qcompile.targets.tvm.tuning_records import Record, open_records

TRIALS = 12


def _lines(database: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in database.read_text().splitlines()]


def _trials(database: Path) -> int:
    return sum(bool(line["trace"]) for line in _lines(database))


@pytest.mark.parametrize("batch", [1, 3])
def test_equals_pytorch(tuned: Any, batch: int) -> None:
    images = tuned.images[:batch]
    with torch.no_grad():
        expected = tuned.module(images).numpy()
    found = next(iter(tuned.bundle.session().run({"image": images.numpy()}).values()))
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected))


def test_measures_as_many_as_asked_and_says_what_it_used(tuned: Any) -> None:
    assert _trials(tuned.database) == TRIALS
    facts = tuned.bundle.manifest.engine["tuning"]
    assert facts["trials"] == tuned.bundle.manifest.options["tune"] == TRIALS
    assert facts["records"] > 0
    assert len(facts["sha256"]) == 64
    assert any("run tuned" in note for note in tuned.bundle.manifest.notes)
    assert str(tuned.database) not in tuned.bundle.manifest.to_json()


def test_what_is_slower_than_the_default_is_not_used(tuned: Any) -> None:
    best: dict[str, Any] = {}
    for line in _lines(tuned.database):
        known = best.setdefault(line["task"], line)
        if line["seconds"] and not (known["seconds"] or 1) <= line["seconds"]:
            best[line["task"]] = line
    wanted = sum(bool(line["trace"]) for line in best.values())
    assert tuned.bundle.manifest.engine["tuning"]["records"] == wanted


def test_a_second_run_measures_nothing_and_gives_the_same_bytes(
    tuned: Any, make: Callable[..., Any], counted: Any, tmp_path: Path
) -> None:
    before = tuned.database.read_bytes()
    again = make(tmp_path / "again.qc", Tuning(TRIALS, tuned.database))
    applied = make(tmp_path / "applied.qc", Tuning(0, tuned.database))
    assert counted.calls == 0
    assert tuned.measured > TRIALS  # and the default schedules
    assert tuned.database.read_bytes() == before
    library = (tuned.bundle.path / "model.so").read_bytes()
    assert (again.path / "model.so").read_bytes() == library
    assert (applied.path / "model.so").read_bytes() == library
    assert again.manifest.to_json() == tuned.bundle.manifest.to_json()


@pytest.mark.slow
def test_another_batch_is_another_task(
    tuned: Any, make: Callable[..., Any], counted: Any, tmp_path: Path
) -> None:
    """A fixed batch of four images; records are of one image, and none is applied."""
    bundle = make(tmp_path / "fixed.qc", Tuning(0, tuned.database), free=False)
    assert counted.calls == 0
    assert bundle.manifest.engine["tuning"]["records"] == 0
    assert any(note.startswith("no record is of") for note in bundle.manifest.notes)


def test_untuned_says_how_many(make: Callable[..., Any], tmp_path: Path) -> None:
    bundle = make(tmp_path / "plain.qc", Tuning())
    assert "tuning" not in bundle.manifest.engine
    notes = [note for note in bundle.manifest.notes if "--tune N" in note]
    assert len(notes) == 1
    assert "operators run TVM's default schedule" in notes[0]


def test_a_broken_last_line_is_dropped_and_cut_off(
    tuned: Any, make: Callable[..., Any], tmp_path: Path
) -> None:
    database = tmp_path / "tuning.jsonl"
    whole = tuned.database.read_bytes()
    last = whole.splitlines()[-1]
    database.write_bytes(whole + last[: len(last) // 2])
    bundle = make(tmp_path / "small.qc", Tuning(0, database))
    library = (tuned.bundle.path / "model.so").read_bytes()
    assert (bundle.path / "model.so").read_bytes() == library
    assert any("is no record" in note for note in bundle.manifest.notes)
    first = json.loads(whole.splitlines()[0])
    records = open_records(database, first["tvm"], first["target"], must_exist=True)
    records.append(Record("a", "b", 1e-6, None))
    assert database.read_bytes().startswith(whole)
    assert len(_lines(database)) == len(whole.splitlines()) + 1


_BUILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make
from qcompile.targets.options import Tuning
make(Path(sys.argv[2]) / "small.qc", Tuning(int(sys.argv[4]), Path(sys.argv[3])))
"""


def _started(folder: Path, database: Path, trials: int) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", _BUILD, here, str(folder), str(database), str(trials)]
    path = os.pathsep.join(str(Path(part).resolve()) for part in sys.path if part)
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder, env=env)


def _wait_for(database: Path, trials: int) -> None:
    for _ in range(600):
        if database.exists() and database.read_bytes().count(b"\n") > trials:
            return
        time.sleep(0.1)
    raise AssertionError("nothing was measured in a minute")


def _workers() -> set[int]:
    found = set()
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"tuning_worker.py" in words:
            found.add(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("signal", [2, 9])
def test_goes_on_after_it_was_stopped(
    can_tune: None, tmp_path: Path, counted: Any, make: Callable[..., Any], signal: int
) -> None:
    """Ctrl-C or a kill: no bundle, no worker left; the next run measures only what is missing."""
    database, before = tmp_path / "tuning.jsonl", _workers()
    process = _started(tmp_path, database, 1000)
    _wait_for(database, 6)
    mine = _workers() - before
    os.kill(process.pid, signal)
    _, error = process.communicate(timeout=30)
    for _ in range(50):
        if not _workers() & mine:
            break
        time.sleep(0.1)
    assert mine
    assert not _workers() & mine
    assert sorted(path.suffix for path in tmp_path.iterdir() if not path.name.startswith(".")) == [
        ".jsonl"
    ]
    if signal == 2:
        assert "1000 trials are kept" in error
    kept = _trials(database)
    make(tmp_path / "small.qc", Tuning(kept + 2, database))
    assert _trials(database) == kept + 2
    assert counted.calls <= 2 + 4  # and default schedules that were not measured before
