"""TVM bundles of this project beside ONNX Runtime's, on the CPU here and emulated Raspberry Pis.

The same float model, the same 512 calibration images, one run:

    python benchmarks/tvm_vision.py --data shared --output benchmarks/results/tvm_vision.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz. Needs a CPU with AVX-512 VNNI, a C++ compiler for it and one for aarch64,
and qemu-aarch64. TVM's own float kernels are tuned with --trials, for a quarter of an hour a network; what
was measured before is in the cache or in --tune-database.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from float_vision import MODELS, load_images, load_model
from measure_int8 import agreement, run_measured, sqnr_db, top1
from measure_tvm import (
    Closeness,
    closeness,
    emulated,
    graph_run,
    load_ms,
    logits_of,
    medians_us,
    own_run,
    package_bytes,
    parts,
    program_us,
    quantized_graph,
    session_run,
    startup_ms,
)
from pages import command_line, command_parser, publish, tell, working_folder
from report_tvm import OWN_IMAGES, Costs, Result, Row, environment, markdown
from runs import Run, eager

from qcompile.targets.options import NO_TUNING, Tuning

HERE = Path(__file__).parent
MODEL_FILE = HERE / "vision_model.py"
HOST = "x86-avx512-vnni"
ARM = ("raspberry-pi-5", "raspberry-pi-4")
FLOAT = "PyTorch float32"
ORT_INT8, TVM_INT8 = "ONNX Runtime int8", "TVM int8"
BUNDLES = {
    "ONNX Runtime float32": ("onnx", "fp32"),
    ORT_INT8: ("onnx", "int8"),
    "ONNX Runtime int8 weights": ("onnx", "w8a16"),
    TVM_INT8: ("tvm", "int8"),
    "TVM float32": ("tvm", "fp32"),
    "TVM int8 weights": ("tvm", "w8a16"),
    "TVM int4 weights": ("tvm", "int4"),
}
"""Format and precision of this machine's bundles."""


@dataclass(frozen=True)
class Inputs:
    """What everything of one model starts from.

    Args:
        file: The model, its weights beside it.
        calibration: Normalized images.
        images: To test on, normalized.
        labels: Theirs.
        folder: For bundles.
    """

    file: Path
    calibration: Path
    images: np.ndarray
    labels: np.ndarray
    folder: Path


@dataclass(frozen=True)
class Artifact:
    """A bundle, and the seconds that its build took."""

    bundle: Path
    seconds: float


def prepare(model: str, options: argparse.Namespace, folder: Path) -> Inputs:
    """Normalize the images and tell ``vision_model.py`` which network to load."""
    folder.mkdir(parents=True, exist_ok=True)
    data = options.data / "data"
    file, calibration = options.data / "models" / f"{model}.py", folder / "calibration.npz"
    os.environ["BENCHMARK_MODEL"] = str(file)
    np.savez(calibration, image=load_images(data / "cifar10_calibration.npz")[0])
    images, labels = load_images(data / "cifar10_test.npz")
    return Inputs(file, calibration, images[: options.images], labels[: options.images], folder)


def build(target: str, format_: str, precision: str, inputs: Inputs, *, reuse: bool) -> Artifact:
    """Build a bundle in a process of its own."""
    name = f"{target}.{format_}.{precision}"
    bundle, record = inputs.folder / f"{name}.qc", inputs.folder / f"{name}.json"
    if reuse and bundle.exists() and record.exists():
        return Artifact(bundle, json.loads(record.read_text()))
    tell(f"{inputs.file.stem}: building {name}")
    command = [sys.executable, "-m", "qcompile", str(MODEL_FILE), "--target", target, "--force"]
    command += ["--format", format_, "--precision", precision, "-o", str(bundle), "--json"]
    calibrate = [] if precision == "fp32" else ["--calibrate", str(inputs.calibration)]
    seconds = run_measured([*command, *calibrate]).seconds
    record.write_text(json.dumps(seconds))
    return Artifact(bundle, seconds)


def benchmark(model: str, options: argparse.Namespace, folder: Path) -> Result:
    """Build and measure everything for one model."""
    inputs = prepare(model, options, folder)
    reuse = options.reuse
    here = {n: build(HOST, *kind, inputs, reuse=reuse) for n, kind in BUNDLES.items()}
    arm = {target: build(target, "tvm", "int8", inputs, reuse=reuse) for target in ARM}
    runs = {FLOAT: eager(load_model(inputs.file, inputs.file.with_suffix(".safetensors")).eval())}
    runs |= {name: session_run(artifact.bundle) for name, artifact in here.items()}
    logits = {name: _logits(name, run, inputs.images) for name, run in runs.items()}
    own = own_runs(inputs, options)
    logits |= {name: _logits(name, run, inputs.images[:OWN_IMAGES]) for name, run in own.items()}
    rows = measure(inputs, options, here, runs | own, logits)
    sizes = {target: parts(a.bundle) for target, a in ({HOST: here[TVM_INT8]} | arm).items()}
    near = compare(inputs, options.emulated, logits, arm)
    return Result(model, rows, near, sizes)


def own_runs(inputs: Inputs, options: argparse.Namespace) -> dict[str, Run]:
    """Compile the network as TVM does it, without kernels of this project."""
    kinds = {
        "default": NO_TUNING,
        f"{options.trials:,} trials": Tuning(options.trials, options.tune_database),
    }
    found = {}
    for kind, tuning in kinds.items():
        name = f"TVM's own float32, {kind}"
        tell(f"{inputs.file.stem}: compiling {name}")
        found[name] = own_run(MODEL_FILE, HOST, _library(inputs, name), tuning)
    return found


def _library(inputs: Inputs, name: str) -> Path:
    return inputs.folder / f"{name}.so"


def _logits(name: str, run: Run, images: np.ndarray) -> np.ndarray:
    tell(f"{name}: {len(images)} images")
    return logits_of(run, images)


def measure(
    inputs: Inputs,
    options: argparse.Namespace,
    artifacts: dict[str, Artifact],
    runs: dict[str, Run],
    logits: dict[str, np.ndarray],
) -> list[Row]:
    """Return the lines of the table."""
    programs = {n: a.bundle for n, a in artifacts.items() if (a.bundle / "run").exists()}
    python_us, program = latencies(inputs, options, runs, programs)
    rows = []
    for name in runs:
        found = logits[name]
        labels, reference = inputs.labels[: len(found)], logits[FLOAT][: len(found)]
        near = None if name == FLOAT else (agreement(found, reference), sqnr_db(found, reference))
        costs = costs_of(inputs, name, artifacts.get(name))
        rows.append(Row(name, top1(found, labels), near, python_us[name], program.get(name), costs))
    return rows


def latencies(
    inputs: Inputs, options: argparse.Namespace, runs: dict[str, Run], programs: dict[str, Path]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the microseconds of a call in Python and in C++: the best median of the repetitions."""
    image = inputs.images[:1]
    found = []
    for turn in range(options.repetitions):
        tell(f"{inputs.file.stem}: latency, {turn + 1} of {options.repetitions}")
        python = medians_us(runs, image, options.rounds, options.calls)
        calls = options.rounds * options.calls
        found.append((python, {n: program_us(b, image, calls) for n, b in programs.items()}))
    return best([python for python, _ in found]), best([program for _, program in found])


def best(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the least of each."""
    return {name: min(turn[name] for turn in turns) for name in turns[0]}


def costs_of(inputs: Inputs, name: str, artifact: Artifact | None) -> Costs:
    """Return bytes and seconds of a bundle; bytes of PyTorch's weights or of a library without one."""
    if artifact is None:
        weights = inputs.file.with_suffix(".safetensors")
        return Costs((weights if name == FLOAT else _library(inputs, name)).stat().st_size)
    bundle, image = artifact.bundle, inputs.images[:1]
    manifest = json.loads((bundle / "manifest.json").read_text())
    size = (bundle / manifest["artifact"]).stat().st_size
    native = (bundle / "run").exists()
    return Costs(
        size,
        sum(parts(bundle).values()) if native else size + package_bytes("onnxruntime"),
        load_ms(bundle),
        startup_ms(bundle, image, program=False),
        startup_ms(bundle, image, program=True) if native else None,
        artifact.seconds,
    )


def compare(
    inputs: Inputs, emulated_images: int, logits: dict[str, np.ndarray], arm: dict[str, Artifact]
) -> list[Closeness]:
    """Compare each int8 bundle with its quantized graph in PyTorch, and the Arm bundles with each other."""
    few, host = inputs.images[:emulated_images], logits[TVM_INT8]
    own = "its quantized graph in PyTorch"
    rows = []
    for name, format_ in ((TVM_INT8, "tvm"), (ORT_INT8, "onnx")):
        graph = graph_logits(HOST, inputs, inputs.images, format_)
        rows.append(closeness(f"{HOST}, {name}", logits[name], own, graph))
    found, graphs = {}, {}
    for target, artifact in arm.items():
        tell(f"{inputs.file.stem}: {target} under qemu")
        found[target] = emulated(artifact.bundle, few)
        graphs[target] = graph_logits(target, inputs, few, "tvm")
        rows.append(closeness(target, found[target], own, graphs[target]))
    new, old = ARM
    rows.append(closeness(old, found[old], new, found[new]))
    rows.append(closeness(f"graph of {old}", graphs[old], f"graph of {new}", graphs[new]))
    rows.append(closeness(new, found[new], f"{HOST}, {TVM_INT8}", host[: len(few)]))
    return rows


def graph_logits(target: str, inputs: Inputs, images: np.ndarray, format_: str) -> np.ndarray:
    """Run images through the graph that a target's int8 bundle was emitted from."""
    tell(f"{inputs.file.stem}: quantized graph of {target}, {format_}")
    options = {"target": target, "format": format_, "precision": "int8"}
    graph = quantized_graph(MODEL_FILE, inputs.calibration, **options)
    return logits_of(graph_run(graph), images)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and data/")
    add("--model", action="append", choices=MODELS, help="repeatable; all by default")
    add("--images", type=int, default=10_000, help="test images to measure on")
    add("--emulated", type=int, default=100, metavar="N", help="test images under qemu")
    add("--repetitions", type=int, default=3, help="of the latency; the best median counts")
    add("--rounds", type=int, default=25, help="of each repetition")
    add("--calls", type=int, default=20, help="of each row in a round")
    add("--keep", type=Path, help="leave the bundles in KEEP/MODEL/")
    add("--reuse", action="store_true", help="take what an earlier --keep left there")
    add("--trials", type=int, default=2000, help="of TVM's own float32")
    add("--tune-database", type=Path, metavar="FILE", help="its records; default: the cache")
    add("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    os.environ["TVM_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with working_folder(options.keep) as folder:
        results = [benchmark(model, options, folder / model) for model in options.model or MODELS]
    page = markdown(results, environment(command_line(arguments)))
    publish(page, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
