"""The database of measured schedules: a text file, one JSON object a line, only ever appended to.

A line: ``tvm`` (version) and ``target`` (CPU and instruction sets) that it holds for, ``task`` and ``name``,
``seconds`` (``null`` if the candidate failed), ``trace`` (``null`` for TVM's default schedule; ``[]`` says
that the search found nothing new).
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import OutputError, TargetError
from qcompile.targets.cache import cache_root, digest

FILE = "tuning.jsonl"
_FIELDS = {"tvm", "target", "task", "name", "seconds", "trace"}


@dataclass(frozen=True)
class Record:
    """One measurement.

    Args:
        task: Its key.
        name: For people.
        seconds: Of a call; ``None`` if it failed.
        trace: The schedule as TVM writes it; ``None`` for the default, empty if the search is at its end.
    """

    task: str
    name: str
    seconds: float | None
    trace: Sequence[Any] | None

    @property
    def is_trial(self) -> bool:
        """Whether it is a candidate that was measured."""
        return bool(self.trace)


@dataclass
class Records:
    """The records of a file for one version of TVM and one target, and a way to append.

    Args:
        file: Need not exist yet.
        tvm: Version.
        target: In words, as each record says it.
        notes: What was not used, a sentence each.
    """

    file: Path
    tvm: str
    target: str
    found: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def of(self, task: str) -> list[Record]:
        """Return a task's records, oldest first."""
        return [record for record in self.found if record.task == task]

    def best(self, task: str) -> Record | None:
        """Return the fastest schedule of a task; ``None`` if none is known, or none beats the default."""
        timed = [r for r in self.of(task) if r.seconds is not None and r.trace != []]
        fastest = min(timed, key=lambda r: r.seconds or 0.0, default=None)
        return fastest if fastest is not None and fastest.trace else None

    def append(self, record: Record) -> None:
        """Add a record, on disk first: one write of one line, under a lock.

        Raises:
            OutputError: The file cannot be written.
        """
        fields = {"tvm": self.tvm, "target": self.target, **vars(record)}
        line = json.dumps(fields, sort_keys=True, separators=(",", ":")) + "\n"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab+", buffering=0) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                _drop_broken_end(stream)
                stream.write(line.encode())
        except OSError as error:
            raise OutputError(
                f"the tuning database {self.file} cannot be written: {error.strerror}; what it holds is "
                "kept: make room and run the same command again, it goes on from there"
            ) from error
        self.found.append(record)


def cached_file(tvm: str, target: str) -> Path:
    """Return the file of the cache for a version and a target."""
    return cache_root() / "tuning" / f"tvm-{tvm}-{digest([target])}.jsonl"


def open_records(given: Path | None, tvm: str, target: str, *, must_exist: bool) -> Records:
    """Read a database.

    Args:
        given: A file, or a folder with ``tuning.jsonl``; ``None`` for the cache's.
        tvm: The version whose records count.
        target: The target whose records count.
        must_exist: Whether a file that is not there is an error.

    Raises:
        TargetError: It is missing, or cannot be read.
    """
    file = cached_file(tvm, target) if given is None else given
    file = file / FILE if file.is_dir() else file
    records = Records(file, tvm, target)
    try:
        lines = file.read_bytes().split(b"\n") if must_exist or file.exists() else []
    except OSError as error:
        raise TargetError(
            f"the tuning database {file} cannot be read: {error.strerror}; make it with --tune N"
        ) from error
    _read(records, lines)
    return records


def _read(records: Records, lines: Sequence[bytes]) -> None:
    broken, others = [], 0
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        parsed = parse(line)
        if parsed is None:
            broken.append(number)
        elif (parsed["tvm"], parsed["target"]) != (records.tvm, records.target):
            others += 1
        else:
            fields = {name: parsed[name] for name in ("task", "name", "seconds", "trace")}
            records.found.append(Record(**fields))
    records.notes += _notes(records, broken, others)


def _notes(records: Records, broken: Sequence[int], others: int) -> list[str]:
    notes = []
    if broken:
        where = f"line {broken[0]}" if len(broken) == 1 else f"{len(broken)} lines"
        notes.append(f"{where} of {records.file.name} is no record and was not used")
    if others and not records.found:
        notes.append(
            f"the {others} records of {records.file.name} are of another version of TVM or another target "
            f"than TVM {records.tvm} for {records.target}, and were not used"
        )
    return notes


def parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's fields, or ``None`` if it is no record."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(data, dict) or set(data) != _FIELDS:
        return None
    words = all(isinstance(data[name], str) for name in ("tvm", "target", "task", "name"))
    traced = data["trace"] is None or isinstance(data["trace"], list)
    return data if words and traced and _is_time(data["seconds"]) else None


def _is_time(value: Any) -> bool:
    return value is None or (isinstance(value, float) and 0 < value < math.inf)


def _drop_broken_end(stream: Any) -> None:
    """Cut off what a process that was killed left of its last line."""
    size = stream.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - 65536)
        stream.seek(start)
        at = stream.read(end - start).rfind(b"\n")
        end = start + at + 1 if at >= 0 else start
        if at >= 0:
            break
    if end != size:
        stream.truncate(end)
