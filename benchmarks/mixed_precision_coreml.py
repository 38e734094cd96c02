r"""Core ML packages under a budget beside uniform formats: of coremltools.optimize and of this project.

The same float model, the same interpreter, one run:

    python benchmarks/mixed_precision_coreml.py --data shared \
        --output benchmarks/results/mixed_precision_coreml.md

DATA holds models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and
data/cifar10_calibration.npz. Needs ``pip install scikit-learn kmeans1d`` for coremltools' palettes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from coreml_vision import FORMATS, TARGET, Artifact, Inputs, build_peer, timed
from measure_coreml import interpreted, package_bytes
from measure_int8 import top1
from mixed_inputs import Test, bundle_folder, formats_of, logits, prepared, run
from pages import command_line, tell
from peers_coreml import INPUT, PEERS
from report_mixed import MIXED, OURS, POINTS, Row, environment, page, row

from qcompile.compiler.driver import Bundle
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions

UNIFORM = ("fp16", "int8", "int4", "palette-6", "palette-4", "palette-4 per tensor", "palette-3")
"""Of this project."""
FOUR_BITS = ("palette-4", "palette-4 per tensor", "int4")
NOTES = """\
Uniform formats of coremltools start from the fp16 package that qcompile wrote. coremltools leaves weights
of up to 2048 elements in fp16; in the rows `all weights` its `weight_threshold` is 0. Uniform formats of
qcompile have the 512 calibration images, and so have plans. A plan `mixed, N bytes` is `--max-size N`, with
N the bytes of a uniform package; `mixed, top-1` is `--optimize size --max-drop 0.5`, whose `evaluate` are
other test images than those of this table. All packages, as they are on disk, run in the reference
interpreter on Linux, so that nothing is assumed of what they decode to. Agreement and KL divergence are
with the float32 model in PyTorch.
Seconds are of one run on a shared machine, with verification and damage.
"""


def judged(artifact: Artifact, test: Test, formats: str = "") -> Row:
    """Return the row of a package."""
    found = logits(interpreted(artifact.package), test.images)
    size = package_bytes(artifact.package)
    return row(
        artifact.format, artifact.tool, size, found, test.reference, test.labels, artifact.seconds, formats
    )  # fmt: skip


def build_ours(name: str, inputs: Inputs, **options: Any) -> tuple[Artifact, str]:
    """Build with this project; return the package, and the formats of a plan."""
    given = BuildOptions(target=TARGET, calibrate={INPUT: inputs.calibration}, **options)
    folder = bundle_folder(inputs, name)
    found: list[Bundle] = []
    seconds = timed(lambda: found.append(build(inputs.source, folder, given, force=True)))
    return Artifact(name, OURS, folder / "model.mlpackage", seconds), formats_of(found[0])


def uniform_rows(inputs: Inputs, test: Test) -> list[Row]:
    """Return the rows of uniform formats, those of a format together."""
    rows = []
    for format_ in UNIFORM:
        tell(f"building {format_}")
        precision, weights = FORMATS[format_]
        settings = {"precision": precision, "weights": weights, "evaluate": False}
        rows.append(judged(build_ours(format_, inputs, **settings)[0], test))
        peers = PEERS.get(format_, {})
        rows += [judged(build_peer(format_, tool, inputs), test) for tool in peers]
    return rows


def sizes_to_match(rows: list[Row]) -> dict[str, Row]:
    """Return the uniform packages of 4 bits whose bytes plans get: our best, and the peer's best."""
    found = {}
    for tool in (OURS, "coremltools"):
        same = [r for r in rows if r.weights in FOUR_BITS and r.tool == tool and r.bytes < 500_000]
        best = max(same, key=lambda r: r.agreement)
        found[f"{MIXED}, {best.bytes:,} bytes"] = best
    return found


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything for one model; return the page."""
    inputs, test = prepared(options, folder)
    rows = uniform_rows(inputs, test)
    wanted = sizes_to_match(rows)
    for name, uniform in wanted.items():
        tell(f"building {name}")
        rows.append(judged(*_with(test, build_ours(name, inputs, budget=Budget(uniform.bytes)))))
    tell("building the smallest")
    smallest = Budget(optimize="size")
    built = build_ours(f"{MIXED}, top-1", inputs, budget=smallest, max_drop=POINTS)
    rows.append(judged(*_with(test, built)))
    sizes = {f"{name} by {OURS}": uniform.name for name, uniform in wanted.items()}
    packages = ("coremltools", "scikit-learn", "kmeans1d", "scipy")
    facts = environment(command_line(sys.argv[1:]), len(test.images), packages)
    title = f"{options.model} as Core ML packages under a budget, beside uniform formats"
    return page(title, NOTES, rows, top1(test.reference, test.labels), sizes, facts)


def _with(test: Test, built: tuple[Artifact, str]) -> tuple[Artifact, Test, str]:
    return built[0], test, built[1]


if __name__ == "__main__":
    sys.exit(run(__doc__, benchmark, sys.argv[1:]))
