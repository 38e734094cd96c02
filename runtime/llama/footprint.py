"""What a model takes while it runs: memory and milliseconds a token, in a process of its own.

    python -m qcompile.runtime.llama.footprint FILE --context 2048 --sizes
    python -m qcompile.runtime.llama.footprint FILE --context 2048 --fill
    python -m qcompile.runtime.llama.footprint FILE ... --tokens 32

``--sizes`` reads no weights and allocates nothing: llama.cpp says what its buffers would take. ``--fill``
reads a whole context and tells the largest memory of the process. ``--tokens`` times so many single tokens,
file after file. The answer is JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.runtime.errors import QCompileError
from qcompile.runtime.llama.context import Context, Options
from qcompile.runtime.llama.library import sizes
from qcompile.runtime.llama.model import Model

MIB = 1 << 20
_LINES = {
    "kv": re.compile(r"^llama_kv_cache\w*: size =\s*([0-9.]+) MiB"),
    "compute": re.compile(r"compute buffer size =\s*([0-9.]+) MiB"),
    "output": re.compile(r"output buffer size =\s*([0-9.]+) MiB"),
}
"""Of llama.cpp's log: what it says of its buffers, in MiB with two digits."""
_ENOUGH = 3.0
"""Seconds of timed tokens of one file."""
_FIRST = 3
"""Tokens that are not counted: they bring weights into memory."""
_STATUS = Path("/proc/self/status")


def buffers(lines: Iterable[str]) -> dict[str, int]:
    """Return bytes of each kind of buffer that lines of llama.cpp's log tell of.

    Args:
        lines: ``llama_kv_cache: size = 4.00 MiB (...)`` and the like.
    """
    found = dict.fromkeys(_LINES, 0.0)
    for line in lines:
        for kind, pattern in _LINES.items():
            if match := pattern.search(line):
                found[kind] += float(match[1])
    return {kind: round(value * MIB) for kind, value in found.items()}


def peak_bytes() -> int:
    """Return the most memory that this process has held at once, mapped files included."""
    if _STATUS.is_file():  # of this program alone; ru_maxrss also counts what it was forked from
        match = re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())
        if match:
            return int(match[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def told_sizes(file: Path, options: Options, context: int) -> dict[str, int]:
    """Return bytes of ``kv``, ``compute`` and ``output`` buffers, and of the process: ``engine``."""
    model = Model(file, repack=options.repack, empty=True)
    room = Context(model, options, context)
    found = buffers(sizes())
    del room
    return {**found, "engine": peak_bytes()}


def filled(file: Path, options: Options, context: int, threads: int) -> dict[str, int]:
    """Return the ``peak`` of a process that has read a whole context."""
    model = Model(file, repack=options.repack)
    room = Context(model, options, context, threads=threads)
    ids = np.arange(context)[None] % model.vocabulary
    room.decode(ids, 0, context - 1)
    return {"peak": peak_bytes()}


def milliseconds(file: Path, options: Options, tokens: int, threads: int) -> float:
    """Return the median time of a token that follows few others.

    Args:
        file: The model; what its weights are does not matter.
        options: Of the engine.
        tokens: At most so many are timed.
        threads: Of the engine.
    """
    model = Model(file, repack=options.repack)
    room = Context(model, options, min(tokens + _FIRST, model.context), threads=threads)
    found: list[float] = []
    for position in range(room.length):
        start = time.perf_counter()
        room.decode(np.zeros((1, 1), np.int64), position, position)
        found.append(time.perf_counter() - start)
        if len(found) >= tokens + _FIRST or (len(found) > _FIRST and sum(found) > _ENOUGH):
            break
    return 1e3 * statistics.median(found[_FIRST:])


def main(arguments: list[str]) -> int:
    """Measure; print JSON; return 2 if llama.cpp cannot."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sizes", action="store_true")
    parser.add_argument("--fill", action="store_true")
    parser.add_argument("--tokens", type=int, default=0)
    given = parser.parse_args(arguments)
    try:
        print(json.dumps(_measured(given)))
    except QCompileError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _measured(given: argparse.Namespace) -> Any:
    options, first = Options.of(given.options), given.files[0]
    if given.sizes:
        return told_sizes(first, options, given.context)
    if given.fill:
        return filled(first, options, given.context, given.threads)
    return [milliseconds(file, options, given.tokens, given.threads) for file in given.files]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
