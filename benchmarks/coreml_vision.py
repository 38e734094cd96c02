"""Core ML packages of this project beside those of coremltools.optimize.

The same float model, the same float package to start from, the same interpreter, one run:

    python benchmarks/coreml_vision.py --data shared --output benchmarks/results/coreml_vision.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz. Needs ``pip install scikit-learn kmeans1d`` for coremltools' palettes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from float_vision import MODELS, load_images, load_model
from measure_coreml import FLOAT, Outputs, interpreted, package_bytes, run_all, slowdown
from measure_coreml import weight_bytes as stored_bytes
from measure_int8 import agreement, sqnr_db, top1
from pages import command_line, command_parser, publish, tell, working_folder
from peers_coreml import INPUT, PEERS
from report_coreml import OURS, Result, Row, environment, markdown
from runs import eager

from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.targets.options import WeightOptions

TARGET = "apple-m2"
MAX_BATCH = 1000
PLAIN = WeightOptions()
SCALES = WeightOptions(channel_scales=True)
PER_TENSOR = WeightOptions(granularity="per-tensor")
PER_TENSOR_SCALES = WeightOptions(granularity="per-tensor", channel_scales=True)
FORMATS: dict[str, tuple[str, WeightOptions]] = {
    "fp32": ("fp32", PLAIN),
    "fp16": ("fp16", PLAIN),
    "int8": ("int8", PLAIN),
    "w8a8": ("w8a8", PLAIN),
    "int4": ("int4", PLAIN),
    "palette-6": ("palette-6", PLAIN),
    "palette-6 per tensor": ("palette-6", PER_TENSOR),
    "palette-4": ("palette-4", PLAIN),
    "palette-4 per tensor": ("palette-4", PER_TENSOR),
    "palette-4, channel scales": ("palette-4", SCALES),
    "palette-4 per tensor, channel scales": ("palette-4", PER_TENSOR_SCALES),
    "palette-3": ("palette-3", PLAIN),
    "palette-2": ("palette-2", PLAIN),
}
"""Precision and options of this project, by format; peers are compared within a format."""


@dataclass(frozen=True)
class Artifact:
    """A package to measure.

    Args:
        format: A key of ``FORMATS``.
        tool: Who made it.
        package: The ``.mlpackage``.
        seconds: That its build took.
    """

    format: str
    tool: str
    package: Path
    seconds: float

    @property
    def name(self) -> str:
        """Of the row."""
        return f"{self.format} by {self.tool}"


@dataclass(frozen=True)
class Inputs:
    """What all builds of one model start from; images are normalized."""

    source: Source
    calibration: np.ndarray
    folder: Path

    @property
    def float_package(self) -> Path:
        """What peers compress."""
        return self.folder / "fp16.qc" / "model.mlpackage"


def prepare(model: str, data: Path, folder: Path) -> Inputs:
    """Trace the model with a free batch."""
    file = data / "models" / f"{model}.py"
    module = load_model(file, file.with_suffix(".safetensors")).eval()
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}}
    example = {INPUT: torch.zeros(2, 3, 32, 32)}
    source = from_module(module, example, dynamic_shapes=shapes, name=model)
    return Inputs(source, load_images(data / "data" / "cifar10_calibration.npz")[0], folder)


def build_ours(format_: str, inputs: Inputs) -> Artifact:
    """Build with this project."""
    precision, weights = FORMATS[format_]
    calibrate = {INPUT: inputs.calibration}
    options = BuildOptions(
        target=TARGET, precision=precision, weights=weights, calibrate=calibrate, evaluate=False
    )
    folder = inputs.folder / f"{format_.replace(' ', '-').replace(',', '')}.qc"
    seconds = timed(lambda: build(inputs.source, folder, options, force=True))
    return Artifact(format_, OURS, folder / "model.mlpackage", seconds)


def build_peer(format_: str, tool: str, inputs: Inputs) -> Artifact:
    """Build with a peer, from this project's fp16 package."""
    output = inputs.folder / f"{format_} by {tool}.mlpackage"
    peer = PEERS[format_][tool]
    seconds = timed(lambda: peer.build(inputs.float_package, inputs.calibration, output))
    return Artifact(format_, tool, output, seconds)


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that something takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def build_all(formats: list[str], inputs: Inputs) -> tuple[list[Artifact], dict[str, str]]:
    """Return all packages, those of a format together, and why others could not be built."""
    artifacts, failures = [], {}
    for format_ in formats:
        tell(f"{inputs.source.name}: building {format_}")
        artifacts.append(build_ours(format_, inputs))
        for tool in PEERS.get(format_, {}):
            try:
                artifacts.append(build_peer(format_, tool, inputs))
            except RuntimeError as error:
                failures[f"{format_} by {tool}"] = str(error)
    return artifacts, failures


def benchmark(model: str, options: argparse.Namespace, folder: Path) -> Result:
    """Build and measure everything for one model."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(model, options.data, folder)
    images, labels = load_images(options.data / "data" / "cifar10_test.npz")
    images, labels = images[: options.images], labels[: options.images]
    artifacts, failures = build_all(selected(options.only), inputs)
    torch.set_num_threads(1)
    runs = {FLOAT: eager(inputs.source.module)}
    runs |= {artifact.name: interpreted(artifact.package) for artifact in artifacts}
    found = run_all(runs, images, options.batch, lambda done: tell(f"{model}: {done} images"))
    reference = found[FLOAT]
    rows = [row(a, found[a.name], reference, labels) for a in artifacts]
    seconds = float(reference.seconds.sum())
    return Result(model, top1(reference.logits, labels), seconds, rows, failures)


def row(artifact: Artifact, outputs: Outputs, reference: Outputs, labels: np.ndarray) -> Row:
    """Return one line of the table."""
    return Row(
        artifact.format,
        artifact.tool,
        top1(outputs.logits, labels),
        agreement(outputs.logits, reference.logits),
        sqnr_db(outputs.logits, reference.logits),
        package_bytes(artifact.package),
        stored_bytes(artifact.package),
        artifact.seconds,
        slowdown(outputs, reference),
    )


def selected(only: list[str] | None) -> list[str]:
    """Return the formats to build, in order; fp16 always, for peers start from it."""
    return [name for name in FORMATS if only is None or name in only or name == "fp16"]


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    repeatable = "repeatable; all by default"
    parser.add_argument("--data", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--model", action="append", choices=MODELS, help=repeatable)
    parser.add_argument("--only", action="append", choices=FORMATS, help=repeatable)
    parser.add_argument("--images", type=int, default=10_000, help="test images to measure on")
    parser.add_argument("--batch", type=int, default=100, help=f"images a call, up to {MAX_BATCH}")
    parser.add_argument("--keep", type=Path, help="leave the packages in KEEP/MODEL/")
    parser.add_argument("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    with working_folder(options.keep) as folder:
        results = [benchmark(model, options, folder / model) for model in options.model or MODELS]
    page = markdown(results, environment(command_line(arguments), options.images, options.batch))
    publish(page, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
