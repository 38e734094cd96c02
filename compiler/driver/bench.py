"""``qcompile bench``: a bundle in a fresh process that holds nothing but the runtime."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qcompile.runtime import manifest as manifests
from qcompile.runtime.errors import BundleError
from qcompile.runtime.session import engine_class

_PROGRAM = """
import importlib, json, resource, sys, time
from pathlib import Path
import numpy
def peak():
    try:  # getrusage would count the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
from qcompile.runtime import latency
from qcompile.runtime.session import Session
for package in sys.argv[4:]:
    importlib.import_module(package)
before, start = peak(), time.perf_counter()
session = Session(Path(sys.argv[1]), threads=int(sys.argv[2]), check_files=False)
seconds = time.perf_counter() - start
found = latency.measure(session, runs=int(sys.argv[3]))
version = getattr(session._engine, "version", "")
print(json.dumps({**vars(found), "load_seconds": seconds, "base_rss_mib": before,
                  "peak_rss_mib": peak(), "version": version}))
"""


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Args:
        p50: Median microseconds of a call.
        p90: 90th percentile.
        p99: 99th percentile.
        mean: Mean.
        runs: Timed calls.
        load_seconds: From the path to a session that is ready.
        base_rss_mib: Memory of Python, numpy and the engine before the bundle is loaded.
        peak_rss_mib: Peak of the whole process.
        engine: Name and version.
        cpu: Of this machine.
    """

    p50: float
    p90: float
    p99: float
    mean: float
    runs: int
    load_seconds: float
    base_rss_mib: float
    peak_rss_mib: float
    engine: str
    cpu: str


def bench(folder: Path, *, threads: int = 1, runs: int = 500) -> BenchResult:
    """Measure a bundle.

    Raises:
        BundleError: It is incomplete, was changed, or does not run.
    """
    engine = str(manifests.read(folder).engine["name"])
    engine_class(engine)
    packages = [engine] if importlib.util.find_spec(engine) else []
    numbers = [str(folder), str(threads), str(runs)]
    command = [sys.executable, "-P", "-c", _PROGRAM, *numbers, *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BundleError(f"{folder} does not run: {reason.rpartition('Error: ')[2]}")
    found = json.loads(done.stdout)
    version = found.pop("version")
    return BenchResult(**found, engine=f"{engine} {version}", cpu=cpu_name())


def cpu_name() -> str:
    """Return the processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
