r"""TVM libraries whose weights have 32, 8 and 4 bits under a budget, beside uniform formats.

The same float model, TVM for all, one run:

    python benchmarks/mixed_precision_tvm.py --data shared \
        --output benchmarks/results/mixed_precision_tvm.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coreml_vision import Inputs, timed
from measure_int8 import top1
from measure_tvm import medians_us, session_run
from mixed_inputs import Test, bundle_folder, formats_of, logits, prepared, run
from pages import command_line, tell
from peers_coreml import INPUT
from report_mixed import MIXED, OURS, POINTS, Row, environment, page, row

from qcompile.compiler.driver import Bundle
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.targets.options import WeightOptions

UNIFORM: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "w8a16": {"precision": "w8a16"},
    "int4": {"precision": "int4"},
    "int4-per-channel": {
        "precision": "int4",
        "weights": WeightOptions(granularity="per-channel"),
    },
}
"""Of this project: all weights alike."""
ROUNDS, CALLS = 40, 50
"""Of timing: each bundle is called so often in each round, one bundle after the other."""
NOTES = """\
Weights alone are in codes; arithmetic is in float32. `w8a16` has int8 with a scale a channel, `int4` a scale
for 32 input channels, `int4-per-channel` one for all. They and plans are rounded alike, with the 512
calibration images. A plan `mixed, N bytes` is `--max-size N`, with N the bytes of a uniform `model.so`;
`mixed, top-1` is `--optimize size --max-drop 0.5`, whose `evaluate` are other test images than those of this
table. Bytes are those of `model.so`, code included. Agreement and KL divergence are with the float32 model in
PyTorch. Seconds are of one run on a shared machine, with verification and damage.
"""


@dataclass(frozen=True)
class Built:
    """A bundle, and its row."""

    bundle: Bundle
    row: Row


def built(name: str, inputs: Inputs, test: Test, **options: Any) -> Built:
    """Build and judge one library."""
    tell(f"building {name}")
    given = BuildOptions(target="tvm", calibrate={INPUT: inputs.calibration}, **options)
    found: list[Bundle] = []
    folder = bundle_folder(inputs, name)
    seconds = timed(lambda: found.append(build(inputs.source, folder, given, force=True)))
    predicted = logits(session_run(found[0].path), test.images)
    size = found[0].manifest.sizes["artifact_bytes"]
    judged = row(
        name, OURS, size, predicted, test.reference, test.labels, seconds, formats_of(found[0])
    )
    return Built(found[0], judged)


def latency(all_built: Sequence[Built], image: np.ndarray) -> list[str]:
    """Return a table of the medians of a call with one image, on one thread."""
    runs = {one.row.weights: session_run(one.bundle.path) for one in all_built}
    found = medians_us(runs, image, ROUNDS, CALLS)
    lines = ["", "## Latency", "", "| weights | µs an image |", "| --- | ---: |"]
    return [*lines, *(f"| {name} | {value:.0f} |" for name, value in found.items())]


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything for one model; return the page."""
    inputs, test = prepared(options, folder)
    found = [built(name, inputs, test, evaluate=False, **how) for name, how in UNIFORM.items()]
    sizes = {}
    for uniform in found[2:]:
        name = f"{MIXED}, {uniform.row.bytes:,} bytes"
        sizes[f"{name} by {OURS}"] = uniform.row.name
        found.append(built(name, inputs, test, budget=Budget(uniform.row.bytes)))
    smallest = Budget(optimize="size")
    found.append(built(f"{MIXED}, top-1", inputs, test, budget=smallest, max_drop=POINTS))
    facts = environment(command_line(sys.argv[1:]), len(test.images), ("apache-tvm", "scipy"))
    title = f"{options.model} as TVM libraries under a budget, beside uniform formats"
    rows = [one.row for one in found]
    text = page(title, NOTES, rows, top1(test.reference, test.labels), sizes, facts)
    return text + "\n".join([*latency(found, test.images[:1]), ""])


if __name__ == "__main__":
    sys.exit(run(__doc__, benchmark, sys.argv[1:]))
