"""TVM's own float kernels, default and tuned, beside ours and ONNX Runtime's, on one thread.

    python benchmarks/tvm_tune.py --data shared --model resnet20 --trials 200

DATA holds models/NAME.py with models/NAME.safetensors. TVM's own kernels are what `--tune` works on where
this project has none. Schedules are measured anew, unless --tune-database names a file.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from measure_tvm import medians_us, own_run, session_run

from qcompile.compiler.driver import BuildOptions, build
from qcompile.compiler.driver.bench import cpu_name
from qcompile.compiler.frontend.load import Source, load
from qcompile.targets.options import Tuning

MODEL_FILE = Path(__file__).parent / "vision_model.py"
TARGET = "x86-avx512-vnni"
ORT, OURS, DEFAULT = (
    "ONNX Runtime float32",
    "qcompile float32, in TVM",
    "TVM's own float32, default",
)
PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnxruntime", "torch")


def main() -> None:
    """Build four libraries, measure them in turn, print a table."""
    given = _arguments()
    os.environ["BENCHMARK_MODEL"] = str(given.data / "models" / f"{given.model}.py")
    torch.set_num_threads(1)
    source = load(str(MODEL_FILE))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        database = given.tune_database or work / "tuning.jsonl"
        tuned = Tuning(given.trials, database)
        makers = {
            ORT: lambda: session_run(_bundle(source, work / "onnx.qc", "onnx")),
            OURS: lambda: session_run(_bundle(source, work / "tvm.qc", "tvm")),
            DEFAULT: lambda: own_run(MODEL_FILE, TARGET, work / "default.so"),
            f"TVM's own float32, {given.trials:,} trials": lambda: own_run(
                MODEL_FILE, TARGET, work / "tuned.so", tuned
            ),
        }
        runs, seconds = {}, {}
        for name, make in makers.items():
            start = time.perf_counter()
            runs[name] = make()
            seconds[name] = time.perf_counter() - start
        image = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
        found = medians_us(runs, image, given.rounds, 10)
    _report(given.model, found, seconds)


def _bundle(source: Source, folder: Path, format: str) -> Path:
    options = BuildOptions(target=TARGET, format=format, precision="fp32", evaluate=False)
    return build(source, folder, options).path


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
