"""What is measured of Core ML packages: outputs on test images, speed beside PyTorch, bytes on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from runs import Run

from qcompile.targets.coreml.session import ReferenceEngine

FLOAT = "PyTorch"


@dataclass(frozen=True)
class Outputs:
    """What one model made of all images.

    Args:
        logits: ``[images, classes]``.
        seconds: Of each batch.
    """

    logits: np.ndarray
    seconds: np.ndarray


def interpreted(package: Path) -> Run:
    """Return what runs a batch in the reference interpreter, on one thread."""
    engine = ReferenceEngine(package, {}, 1)
    return lambda images: engine.run([images])[0]  # type: ignore[no-any-return]


def run_all(
    runs: Mapping[str, Run],
    images: np.ndarray,
    batch: int,
    on_batch: Callable[[int], None] = lambda done: None,
) -> dict[str, Outputs]:
    """Run each batch through all models in turn, so that a slow spell of the machine slows all.

    Before the first batch that counts, each model runs it once: then its weights are decoded.

    Args:
        runs: By name.
        images: NCHW.
        batch: Images in a batch.
        on_batch: Told how many images are done.
    """
    for run in runs.values():
        run(images[:batch])
    found: dict[str, list[tuple[np.ndarray, float]]] = {name: [] for name in runs}
    for start in range(0, len(images), batch):
        for name, run in runs.items():
            begin = time.perf_counter()
            logits = run(images[start : start + batch])
            found[name].append((logits, time.perf_counter() - begin))
        on_batch(start + batch)
    return {name: _joined(pairs) for name, pairs in found.items()}


def _joined(pairs: list[tuple[np.ndarray, float]]) -> Outputs:
    return Outputs(np.concatenate([p[0] for p in pairs]), np.array([p[1] for p in pairs]))


def slowdown(outputs: Outputs, reference: Outputs) -> float:
    """Return the median over the batches of how many times longer one model took than the other."""
    return float(np.median(outputs.seconds / reference.seconds))


def package_bytes(package: Path) -> int:
    """Return the bytes of all files."""
    return sum(f.stat().st_size for f in package.rglob("*") if f.is_file())


def weight_bytes(package: Path) -> int:
    """Return the bytes of ``weight.bin``."""
    return sum(f.stat().st_size for f in package.rglob("weight.bin"))
