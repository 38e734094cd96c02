"""What the benchmarks of budgets start from: images to judge on, others to tune on, a few settings."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coreml_vision import Inputs, prepare
from float_vision import MODELS, load_images
from measure_int8 import top1
from pages import command_parser, publish, working_folder
from peers_coreml import INPUT
from runs import Run, eager

from qcompile.compiler.driver import Bundle


@dataclass(frozen=True)
class Test:
    """What artifacts are judged on; the reference are the float model's logits."""

    images: np.ndarray
    labels: np.ndarray
    reference: np.ndarray


def parse(description: str | None, arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(description)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and data/")
    add("--model", choices=MODELS, default="mobilenet_v2")
    add("--images", type=int, default=8_000, help="test images to judge on")
    add("--tune", type=int, default=2_000, help="other test images: `evaluate` of the model file")
    add("--keep", type=Path, help="leave the artifacts in KEEP/")
    add("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def run(
    description: str | None,
    benchmark: Callable[[argparse.Namespace, Path], str],
    arguments: list[str],
) -> int:
    """Read the command line, run a benchmark in its folder, and publish the page that it returns."""
    options = parse(description, arguments)
    with working_folder(options.keep) as folder:
        publish(benchmark(options, folder), options.output)
    return 0


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Inputs, Test]:
    """Return the model, whose ``evaluate`` has the first images, and those after them to judge on."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = prepare(options.model, options.data, folder)
    images, labels = load_images(options.data / "data" / "cifar10_test.npz")
    judge = slice(options.tune, options.tune + options.images)
    torch.set_num_threads(1)
    test = Test(images[judge], labels[judge], logits(eager(inputs.source.module), images[judge]))
    evaluate = evaluation(images[: options.tune], labels[: options.tune])
    return replace(inputs, source=replace(inputs.source, evaluate=evaluate)), test


def logits(run: Run, images: np.ndarray) -> np.ndarray:
    """Return what a model makes of all images."""
    return np.concatenate([run(images[i : i + 250]) for i in range(0, len(images), 250)])


def evaluation(images: np.ndarray, labels: np.ndarray) -> Callable[[Any], dict[str, float]]:
    """Return an ``evaluate``: top-1 in percent."""

    def evaluate(predict: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> dict[str, float]:
        def run(batch: np.ndarray) -> np.ndarray:
            return np.asarray(next(iter(predict({INPUT: batch}).values())))

        return {"top1": top1(logits(run, images), labels)}

    return evaluate


def bundle_folder(inputs: Inputs, name: str) -> Path:
    """Return where the bundle of a row is built."""
    return inputs.folder / f"{name.replace(' ', '-').replace(',', '')}.qc"


def formats_of(bundle: Bundle) -> str:
    """Return how many weights have which format, if the bundle is of a plan."""
    counts = Counter(bundle.manifest.plan.get("types", {}).values())
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
