"""The part of tuning databases that builds use: a file small enough to ship.

cat tuning.jsonl other.jsonl | python -m qcompile.targets.tvm.tuning_prune > small.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from qcompile.targets.tvm.tuning_records import parse


def pruned(lines: Iterable[bytes]) -> list[bytes]:
    """Return what decides: of each operator the default, the fastest schedule, the end of its search.

    A schedule that does not beat the default is left out, as are lines that are no records.

    Args:
        lines: Of a database, for any versions of TVM and any targets.
    """
    kept: dict[tuple[str, ...], tuple[float, bytes]] = {}
    for line in lines:
        record = parse(line)
        if record is None or (record["trace"] != [] and record["seconds"] is None):
            continue
        key, seconds = (*_operator(record), _kind(record)), record["seconds"] or 0.0
        if key not in kept or seconds < kept[key][0]:
            kept[key] = seconds, line
    return [line for key, (_, line) in kept.items() if not _is_beaten(key, kept)]


def _operator(record: dict[str, Any]) -> tuple[str, ...]:
    return record["tvm"], record["target"], record["task"]


def _kind(record: dict[str, Any]) -> str:
    if record["trace"] is None:
        return "default"
    return "schedule" if record["trace"] else "end"


def _is_beaten(key: tuple[str, ...], kept: dict[tuple[str, ...], tuple[float, bytes]]) -> bool:
    default = kept.get((*key[:-1], "default"))
    return key[-1] == "schedule" and default is not None and default[0] <= kept[key][0]


def main() -> None:
    """Prune what comes in."""
    lines = pruned(sys.stdin.buffer.read().splitlines())
    sys.stdout.buffer.write(b"".join(line + b"\n" for line in lines))
    print(f"{len(lines)} records kept", file=sys.stderr)


if __name__ == "__main__":
    main()
