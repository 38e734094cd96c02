"""What the runtime costs: its import, its size, and each call beside a bare onnxruntime session.

python benchmarks/runtime.py BUNDLE
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from qcompile.runtime.session import Session
from qcompile.runtime.vectors import read_arrays

_IMPORT = """
import time, numpy, sys
start = time.perf_counter()
import qcompile.runtime
print(1000 * (time.perf_counter() - start), "torch" in sys.modules)
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    bundle = parser.parse_args().bundle
    runs = [_import_once() for _ in range(9)]
    bare, ours = _calls(bundle)
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}\n")
    print("| what | measured |\n| --- | --- |")
    print(f"| `import qcompile.runtime` beyond numpy, median of 9 | {np.median(runs):.1f} ms |")
    print(f"| `run.pyz` | {(bundle / 'run.pyz').stat().st_size:,} bytes |")
    print(f"| a call of a bare onnxruntime session, median | {bare:.1f} µs |")
    print(f"| the same by `Session.run`, median | {ours:.1f} µs |")
    print(f"| overhead a call | {ours - bare:.1f} µs |")


def _import_once() -> float:
    command = [sys.executable, "-c", _IMPORT]
    seconds, torch = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    assert torch == "False", "the runtime imported torch"
    return float(seconds)


def _calls(bundle: Path) -> tuple[float, float]:
    """Return the median microseconds of a bare call and of ours, taken in turns."""
    session = Session(bundle)
    inputs = {n: v[:1] for n, v in read_arrays(bundle / "vectors" / "inputs.npz").items()}
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for key, value in session.manifest.engine["options"].items():
        settings.add_session_config_entry(key, value)
    bare = onnxruntime.InferenceSession(str(bundle / session.manifest.artifact), settings)
    calls: list[Callable[[], Any]] = [lambda: bare.run(None, inputs), lambda: session.run(inputs)]
    seconds: list[list[float]] = [[], []]
    for _ in range(3000):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    first, second = (1e6 * float(np.median(taken[200:])) for taken in seconds)
    return first, second


if __name__ == "__main__":
    main()
