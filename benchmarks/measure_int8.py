"""What is measured of an INT8 file: accuracy, closeness to float, latency, cost of the build.

``python benchmarks/measure_int8.py RESULT COMMAND...`` runs a command and writes its wall seconds
and peak memory to RESULT. It is a process of its own because Linux counts a parent's peak into its
child's until the child has more.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Build:
    """What a build took."""

    seconds: float
    peak_mib: float


@dataclass(frozen=True)
class Latency:
    """Microseconds a call."""

    median: float
    p90: float


def top1(logits: Any, labels: Any) -> float:
    """Return the percentage of images whose largest logit is their label's."""
    return float((logits.argmax(1) == labels).mean() * 100)


def agreement(logits: Any, reference: Any) -> float:
    """Return the percentage of images for which both models name the same class."""
    return top1(logits, reference.argmax(1))


def sqnr_db(logits: Any, reference: Any) -> float:
    """Return 10 log10(sum(reference^2) / sum((reference - logits)^2)); infinite if equal."""
    import numpy as np

    wanted = reference.astype(np.float64)
    noise = float(np.square(wanted - logits).sum())
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(wanted).sum() / noise))


def one_thread_session(model: Path) -> Any:
    """Open the model in onnxruntime: CPU, one thread, all optimizations (the default)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def logits_of(model: Path, images: Any, batch: int = 100) -> Any:
    """Run all images through the model's only input and return its first output."""
    import numpy as np

    session = one_thread_session(model)
    name = session.get_inputs()[0].name
    starts = range(0, len(images), batch)
    return np.concatenate(
        [session.run(None, {name: images[start : start + batch]})[0] for start in starts]
    )


def latency_us(
    models: dict[str, Path], image: Any, *, rounds: int = 100, calls: int = 20
) -> dict[str, Latency]:
    """Time single images on one thread, all artifacts in one process, alternating.

    A round times ``calls`` calls of each artifact, starting with another one each round, so that
    what slows the machine down for a while slows all of them down. A tenth as many rounds (at least
    one) come before, to warm up, and are not counted.
    """
    sessions = {name: one_thread_session(model) for name, model in models.items()}
    feeds = {name: {session.get_inputs()[0].name: image} for name, session in sessions.items()}
    times: dict[str, list[int]] = {name: [] for name in models}
    names = list(models)
    warm_up = max(1, rounds // 10)
    for turn in range(-warm_up, rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = time_calls(sessions[name], feeds[name], calls)
            times[name] += taken if turn >= 0 else []
    return {name: summarize(taken) for name, taken in times.items()}


def time_calls(session: Any, feed: dict[str, Any], calls: int) -> list[int]:
    """Return the nanoseconds of each call."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        session.run(None, feed)
        taken.append(time.perf_counter_ns() - start)
    return taken


def summarize(nanoseconds: list[int]) -> Latency:
    """Return the median and the 90th percentile in microseconds."""
    import numpy as np

    median, p90 = np.percentile(nanoseconds, (50, 90)) / 1000
    return Latency(float(median), float(p90))


def run_measured(command: list[str]) -> Build:
    """Run the command in a fresh process; a failure raises with the end of what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        launcher = [sys.executable, str(Path(__file__)), str(result), *command]
        done = subprocess.run(
            launcher, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout.strip()[-500:]}")
        return Build(**json.loads(result.read_text()))


def launch(result: Path, command: list[str]) -> int:
    """Run the command, write its Build to the result file, and return its exit code."""
    start = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    result.write_text(json.dumps({"seconds": seconds, "peak_mib": peak / unit}))
    return code


if __name__ == "__main__":
    sys.exit(launch(Path(sys.argv[1]), sys.argv[2:]))
