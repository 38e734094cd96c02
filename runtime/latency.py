"""How fast a loaded bundle answers: percentiles over single calls."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from qcompile.runtime.session import Session
from qcompile.runtime.vectors import read_arrays


@dataclass(frozen=True)
class Latency:
    """Microseconds of one call with batch size 1.

    Args:
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        mean: Mean.
        runs: Calls that were timed.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    runs: int


def measure(session: Session, *, runs: int = 500, warmup: int = 20) -> Latency:
    """Time calls on the first sample of the bundle's vectors."""
    arrays = read_arrays(session.folder / "vectors" / "inputs.npz")
    inputs = {}
    for info in session.manifest.inputs:
        free = isinstance(info.shape[0], str) if info.shape else False
        inputs[info.name] = arrays[info.name][:1] if free else arrays[info.name]
    for _ in range(warmup):
        session.run(inputs)
    seconds = np.empty(runs)
    for index in range(runs):
        start = time.perf_counter()
        session.run(inputs)
        seconds[index] = time.perf_counter() - start
    p50, p90, p99 = (float(v) for v in np.percentile(seconds, (50, 90, 99)) * 1e6)
    return Latency(p50, p90, p99, float(seconds.mean() * 1e6), runs)
