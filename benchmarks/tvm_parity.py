"""Each stored value of an int8 TVM library against the quantized graph, over all test images.

    python benchmarks/tvm_parity.py --data shared

As the engine gate of every build judges it (docs/decisions/002), which sees 16 images. DATA holds
models/NAME.py with models/NAME.safetensors, data/cifar10_test.npz and data/cifar10_calibration.npz.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from float_vision import MODELS, load_images, load_model

from qcompile.compiler.driver.build import Build, calibration_samples, run_passes
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.driver.target import Target
from qcompile.compiler.frontend.load import from_module
from qcompile.compiler.ir.graph import Graph
from qcompile.targets.tvm import probe
from qcompile.targets.tvm.machine import Machine

INPUT = "image"


def quantized(model: str, options: argparse.Namespace) -> tuple[Graph, Target]:
    """Return the quantized graph of a model, and the target."""
    file = options.data / "models" / f"{model}.py"
    module = load_model(file, file.with_suffix(".safetensors")).eval()
    shapes = {INPUT: {0: torch.export.Dim("batch", min=1, max=1000)}}
    source = from_module(
        module, {INPUT: torch.zeros(2, 3, 32, 32)}, dynamic_shapes=shapes, name=model
    )
    images = load_images(options.data / "data" / "cifar10_calibration.npz")[0]
    settings = BuildOptions(target=options.target, format="tvm", calibrate={INPUT: images})
    work = Build(source, settings, settings.resolve(), Progress())
    work.samples, _ = calibration_samples(source, work.target, settings)
    run_passes(work)
    assert work.quantized is not None
    return work.quantized, work.target


def rows(graph: Graph, target: Target, images: np.ndarray, batch: int) -> Iterator[dict[str, Any]]:
    """Yield a row a stored value and batch."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        target.emitter.emit(graph, folder, target.order("model"))
        machine = Machine.of(target.device)
        for start in range(0, len(images), batch):
            part = np.ascontiguousarray(images[start : start + batch])
            found = probe.engine_errors(graph, machine, folder, {INPUT: part})
            yield from (r for r in found if r["sqnr_db"] is None and isinstance(r["largest"], int))
            print(f"{start + len(part)} images", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Print what differs; 1 if anything does by more than one code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--target", default="x86-avx512-vnni")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=1000)
    options = parser.parse_args(arguments)
    images = load_images(options.data / "data" / "cifar10_test.npz")[0][: options.images]
    worst = 0
    for model in options.model or MODELS:
        found = list(rows(*quantized(model, options), images, options.batch))
        values = sum(r["values"] for r in found)
        differing = sum(r["values"] * r["differing"] for r in found)
        largest = max(r["largest"] for r in found)
        names = len({r["name"] for r in found})
        print(
            f"{model}: {len(images)} images, {names} stored values, {values:,} codes: "
            f"{differing / values:.2e} of them differ, by at most {largest}"
        )
        worst = max(worst, largest)
    return int(worst > 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
