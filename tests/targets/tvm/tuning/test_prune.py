"""A pruned database gives the same libraries, and has a line or two an operator."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile.targets.options import Tuning
from qcompile.targets.tvm.tuning_prune import pruned
from qcompile.targets.tvm.tuning_records import Record, open_records

TVM, TARGET = "0.27", "x86_64 cascadelake"
FAST, SLOW = [["EnterPostproc", [], [], []], [0]], [["EnterPostproc", [], [], []], [1]]
MEASURED = [
    Record("a", "tuned", 3e-6, None),
    Record("a", "tuned", 2e-6, SLOW),
    Record("a", "tuned", None, [[], []]),
    Record("a", "tuned", 1e-6, FAST),
    Record("a", "tuned", None, []),
    Record("b", "best by default", 1e-6, None),
    Record("b", "best by default", 2e-6, SLOW),
    Record("c", "default not measured", 2e-6, SLOW),
    Record("d", "failed", None, SLOW),
]
KEPT = [MEASURED[i] for i in (0, 3, 4, 5, 7)]


def _database(file: Path, records: list[Record], target: str = TARGET) -> bytes:
    database = open_records(file, TVM, target, must_exist=False)
    for record in records:
        database.append(record)
    return file.read_bytes()


def test_what_decides_is_kept(tmp_path: Path) -> None:
    small = b"\n".join(pruned(_database(tmp_path / "all.jsonl", MEASURED).splitlines()))
    (tmp_path / "small.jsonl").write_bytes(small)
    found = open_records(tmp_path / "small.jsonl", TVM, TARGET, must_exist=True)
    grown = open_records(tmp_path / "all.jsonl", TVM, TARGET, must_exist=True)
    assert found.found == KEPT
    assert [found.best(t) for t in "abcd"] == [grown.best(t) for t in "abcd"]
    assert pruned(small.splitlines()) == small.splitlines()


def test_targets_are_kept_apart(tmp_path: Path) -> None:
    _database(tmp_path / "all.jsonl", MEASURED)
    lines = _database(tmp_path / "all.jsonl", MEASURED, "aarch64 cortex-a76").splitlines()
    assert len(pruned(lines)) == 2 * len(KEPT)


@pytest.mark.parametrize("line", [b"", b"{", b'{"tvm": 1}', b'{"task": "a'])
def test_what_is_no_record_goes(line: bytes) -> None:
    assert pruned([line]) == []


def test_the_command(tmp_path: Path) -> None:
    lines = _database(tmp_path / "all.jsonl", MEASURED)
    command = [sys.executable, "-m", "qcompile.targets.tvm.tuning_prune"]
    done = subprocess.run(command, input=lines, capture_output=True, check=True)
    assert done.stdout.splitlines() == pruned(lines.splitlines())
    assert f"{len(KEPT)} records kept" in done.stderr.decode()


def test_gives_the_same_library(tuned: Any, make: Callable[..., Any], tmp_path: Path) -> None:
    database = tmp_path / "small.jsonl"
    kept = pruned(tuned.database.read_bytes().splitlines())
    database.write_bytes(b"".join(line + b"\n" for line in kept))
    bundle = make(tmp_path / "small.qc", Tuning(0, database))
    tasks = {json.loads(line)["task"] for line in kept}
    assert len(kept) <= 3 * len(tasks) < len(tuned.database.read_bytes().splitlines())
    assert (bundle.path / "model.so").read_bytes() == (tuned.bundle.path / "model.so").read_bytes()
