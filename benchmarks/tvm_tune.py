"""TVM's own float kernels, in their default schedule and tuned, beside ONNX Runtime's, on one thread.

    python benchmarks/tvm_tune.py --data shared --model resnet20 --trials 200

DATA holds models/NAME.py with models/NAME.safetensors. Schedules are measured anew, unless --tune-database
names a file.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from measure_tvm import medians_us, session_run

from qcompile.compiler.driver import BuildOptions, build
from qcompile.compiler.driver.bench import cpu_name
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import load
from qcompile.targets.base import NO_TUNING, Tuning

HERE = Path(__file__).parent
TARGET = "x86-avx512-vnni"
ORT, DEFAULT = "ONNX Runtime float32", "TVM float32, default schedule"
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnxruntime", "torch")


def main() -> None:
    """Build three bundles, measure them in turn, print a table."""
    given = _arguments()
    os.environ["BENCHMARK_MODEL"] = str(given.data / "models" / f"{given.model}.py")
    torch.set_num_threads(1)
    tuned = f"TVM float32, {given.trials} trials"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        database = given.tune_database or work / "tuning.jsonl"
        wanted = {
            ORT: ("onnx", NO_TUNING),
            DEFAULT: ("tvm", NO_TUNING),
            tuned: ("tvm", Tuning(given.trials, database)),
        }
        seconds = {}
        bundles = {}
        for name, (format, tuning) in wanted.items():
            start = time.perf_counter()
            bundles[name] = _bundle(work / f"{len(bundles)}.qc", format, tuning)
            seconds[name] = time.perf_counter() - start
        image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        runs = {name: session_run(bundle) for name, bundle in bundles.items()}
        found = medians_us(runs, image, given.rounds, 10)
    _report(given.model, found, seconds)


def _bundle(folder: Path, format: str, tuning: Tuning) -> Path:
    source = load(str(HERE / "vision_model.py"))
    options = BuildOptions(
        target=TARGET, format=format, precision="fp32", tuning=tuning, evaluate=False
    )
    return build(source, folder, options, progress=Progress(measured=_say)).path


def _say(share: float, lines: object) -> None:
    print(f"\r{share:4.0%}", end="", file=sys.stderr, flush=True)


def _report(model: str, found: dict[str, float], seconds: dict[str, float]) -> None:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    print(f"\n{model}, batch 1, one thread of {cpu_name()}; {versions}\n")
    print("| engine | median us | beside ONNX Runtime | build, s |")
    print("| --- | ---: | ---: | ---: |")
    for name, value in found.items():
        print(f"| {name} | {value:,.0f} | {value / found[ORT]:.2f} | {seconds[name]:.0f} |")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--tune-database", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    return parser.parse_args()


if __name__ == "__main__":
    main()
