"""What is measured of TVM bundles: logits, latency of both runtimes, start-up, bytes, closeness to graphs."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_int8 import agreement, sqnr_db
from runs import Run

from qcompile.compiler.driver.build import Build, calibration_samples, run_passes
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.graph import Graph
from qcompile.passes import base
from qcompile.passes.pipelines import float_pipeline
from qcompile.runtime.session import Session
from qcompile.runtime.sessions.tvm import Engine
from qcompile.runtime.vectors import save_arrays
from qcompile.targets.options import NO_TUNING, Tuning
from qcompile.targets.tvm.engine import run_emulated
from qcompile.targets.tvm.machine import Machine
from qcompile.targets.tvm.program import build_library

INPUT = "image"
CLOSE = 1e-4
"""Logits that are nearer than this count as equal: float32 additions in another order."""
_FIRST_OUTPUT = """
import sys, numpy
from qcompile.runtime.session import Session
with numpy.load(sys.argv[2]) as arrays:
    Session(sys.argv[1]).run(dict(arrays))
"""


@dataclass(frozen=True)
class Closeness:
    """How near one artifact's logits are to another's.

    Args:
        artifact: Whose.
        other: To whose.
        images: Compared.
        values: Logits compared.
        differing: Logits that are not equal bit for bit.
        equal: Percentage of images whose logits all are equal to ``CLOSE``.
        agreement: Percentage of images with the same class.
        largest: Difference of two logits.
        sqnr_db: Of the logits.
    """

    artifact: str
    other: str
    images: int
    values: int
    differing: int
    equal: float
    agreement: float
    largest: float
    sqnr_db: float


def closeness(artifact: str, found: np.ndarray, other: str, expected: np.ndarray) -> Closeness:
    """Compare the logits of two artifacts."""
    difference = np.abs(found.astype(np.float64) - expected)
    return Closeness(
        artifact,
        other,
        len(found),
        found.size,
        int(np.count_nonzero(found != expected)),
        float((difference.max(1) <= CLOSE).mean() * 100),
        agreement(found, expected),
        float(difference.max()),
        sqnr_db(found, expected),
    )


def quantized_graph(model_file: Path, calibration: Path, **options: Any) -> Graph:
    """Repeat the passes of a build, and return the graph that its artifact was emitted from.

    The passes give the same graph each time on one thread.

    Args:
        model_file: As the command line's.
        calibration: As the command line's.
        options: Of ``BuildOptions``.
    """
    source = load(str(model_file))
    chosen = BuildOptions(calibrate=calibration, evaluate=False, **options)
    work = Build(source, chosen, chosen.resolve(), Progress())
    work.samples, _ = calibration_samples(source, work.target, chosen)
    run_passes(work)
    assert work.quantized is not None
    return work.quantized


def graph_run(graph: Graph) -> Run:
    """Return what runs images through a graph in PyTorch."""

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            outputs = graph.run({INPUT: torch.from_numpy(images)})
        return next(iter(outputs.values())).numpy()

    return run


def session_run(bundle: Path) -> Run:
    """Return what runs images in a bundle, on one thread."""
    session = Session(bundle)
    return lambda images: next(iter(session.run({INPUT: images}).values()))


def own_run(model_file: Path, target: str, library: Path, tuning: Tuning = NO_TUNING) -> Run:
    """Compile a float model as TVM does it, without kernels of this project, for one thread.

    Args:
        model_file: As the command line's.
        target: As the command line's.
        library: To write.
        tuning: Of TVM's schedules.
    """
    resolved = BuildOptions(target=target, format="tvm", precision="fp32").resolve()
    graph, machine = load(str(model_file)).graph.copy(), Machine.of(resolved.device)
    base.run(graph, float_pipeline(), base.RunOptions(check=False))
    order = replace(resolved.tuned(tuning).order("peer"), on_tuning=_say)
    build_library(graph, machine, library, order)
    engine = Engine(library, machine.options(), 1)
    return lambda images: engine.run([images])[0]


def _say(share: float, lines: object) -> None:
    print(f"\r{share:4.0%}", end="", file=sys.stderr, flush=True)


def emulated(bundle: Path, images: np.ndarray) -> np.ndarray:
    """Run images by the C++ program of another architecture."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    logits: np.ndarray = run_emulated(bundle, bundle, manifest["engine"]["options"], [images])[0]
    return logits


def logits_of(run: Run, images: np.ndarray, batch: int = 100) -> np.ndarray:
    """Run all images."""
    starts = range(0, len(images), batch)
    return np.concatenate([run(images[start : start + batch]) for start in starts])


def medians_us(
    runs: Mapping[str, Run], image: np.ndarray, rounds: int, calls: int
) -> dict[str, float]:
    """Return the median microseconds of a call; see ``measure_int8.latency_us`` for the rounds."""
    times: dict[str, list[int]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(-max(1, rounds // 10), rounds):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            taken = [_nanoseconds(runs[name], image) for _ in range(calls)]
            times[name] += taken if turn >= 0 else []
    return {name: float(np.median(taken)) / 1000 for name, taken in times.items()}


def _nanoseconds(run: Run, image: np.ndarray) -> int:
    start = time.perf_counter_ns()
    run(image)
    return time.perf_counter_ns() - start


def program_us(bundle: Path, image: np.ndarray, calls: int) -> float:
    """Return the median microseconds of a call in the bundle's C++ program, on one thread."""
    with tempfile.TemporaryDirectory() as folder:
        command = _program(bundle, _saved(image, folder))
        done = subprocess.run(
            [*command, "--calls", str(calls), "--json"], capture_output=True, text=True, check=True
        )
    return float(json.loads(done.stdout)["median_us"])


def startup_ms(bundle: Path, image: np.ndarray, *, program: bool, times: int = 5) -> float:
    """Return the median milliseconds of a process that loads the bundle and runs one image.

    Args:
        bundle: To load.
        image: To run.
        program: The bundle's C++ program; else Python.
        times: How often to start it, after once for the disk's cache.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = _saved(image, folder)
        python = [sys.executable, "-c", _FIRST_OUTPUT, str(bundle), str(file)]
        command = [*_program(bundle, file), "--calls", "0"] if program else python
        return _median_ms(
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), times
        )


def load_ms(bundle: Path, times: int = 5) -> float:
    """Return the median milliseconds of opening a bundle in Python, its engine already imported."""
    return _median_ms(lambda: Session(bundle), times)


def _median_ms(work: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:])) * 1000


def _saved(image: np.ndarray, folder: str) -> Path:
    file = Path(folder) / "image.npz"
    save_arrays(file, {INPUT: image})
    return file


def _program(bundle: Path, file: Path) -> list[str]:
    return [str(bundle / "run"), str(bundle), "--input", str(file), "--threads", "1"]


def package_bytes(name: str) -> int:
    """Return the bytes of an installed package's files."""
    files = [Path(str(f.locate())) for f in metadata.files(name) or []]
    return sum(f.stat().st_size for f in files if f.is_file())


def parts(bundle: Path) -> dict[str, int]:
    """Return the bytes of a TVM bundle's files that its C++ program needs, by path."""
    needed = ["manifest.json", "model.so", "run", "lib/*"]
    found = sorted(file for pattern in needed for file in bundle.glob(pattern))
    return {file.relative_to(bundle).as_posix(): file.stat().st_size for file in found}
