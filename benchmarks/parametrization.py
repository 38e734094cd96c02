"""Does INT8 depend on how a network is written? Residual streams of MobileNetV2, rescaled by random factors.

Each channel of every residual stream is multiplied by a factor of 1/16 to 16 where it is written and
divided by it where it is read: the same function, other weights. Prints top-1 of the float model and of
the INT8 bundle in ONNX Runtime, as given and rescaled; per-channel and per-tensor weights.

python benchmarks/parametrization.py --data ../shared [--images 10000]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from float_vision import load_images, load_model
from torch import nn

import qcompile


def rescale(model: nn.Module, seed: int, largest: float = 16.0) -> nn.Module:
    """Rescale the residual streams of a MobileNetV2 in place; return it.

    Args:
        model: With blocks in ``features``, each ending in a convolution and a batch norm.
        seed: For the factors.
        largest: Factors lie between 1 / largest and largest, log-uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    blocks = list(model.features)[1:-1]  # type: ignore[union-attr, arg-type]
    factors = torch.ones(0)
    with torch.no_grad():
        for index, block in enumerate(blocks):
            body: Any = block.body
            if index > 0:
                body[0][0].weight /= factors[None, :, None, None]
            norm = body[-1][1]
            if not block.residual:
                spread = torch.rand(norm.num_features, generator=generator) * 2 - 1
                factors = torch.exp(spread * float(np.log(largest)))
            norm.weight *= factors
            norm.bias *= factors
        head: Any = list(model.features)[-1]  # type: ignore[arg-type]
        head[0].weight /= factors[None, :, None, None]
    return model


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with models/ and data/")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    calibration, _ = load_images(given.data / "data" / "cifar10_calibration.npz")
    test, labels = load_images(given.data / "data" / "cifar10_test.npz")
    test, labels = test[: given.images], labels[: given.images]
    versions = [f"{p} {importlib.metadata.version(p)}" for p in ("torch", "onnxruntime")]
    print(f"{', '.join(versions)}; {len(test)} images\n")
    print(
        "| network | weights | float top-1 | INT8 top-1 | change |\n| --- | --- | --- | --- | --- |"
    )
    for seed in [None, *range(given.seeds)]:
        for granularity in ("per-channel", "per-tensor"):
            files = given.data / "models"
            model = load_model(files / "mobilenet_v2.py", files / "mobilenet_v2.safetensors")
            if seed is not None:
                rescale(model, seed)
            row = measure(model, granularity, calibration, test, labels)
            name = "as trained" if seed is None else f"rescaled, seed {seed}"
            print(f"| {name} | {granularity} | {row[0]:.2f} | {row[1]:.2f} | {row[1] - row[0]:+.2f} |",
                  flush=True)  # fmt: skip


def measure(
    model: nn.Module, granularity: str, calibration: Any, test: Any, labels: Any
) -> tuple[float, float]:
    """Return top-1 of the float model and of its INT8 bundle, in percent."""
    with torch.no_grad():
        float_logits = np.concatenate(
            [model(torch.from_numpy(x)).numpy() for x in np.array_split(test, len(test) // 100)]
        )
    with tempfile.TemporaryDirectory() as folder:
        bundle = qcompile.compile(
            model,
            {"image": torch.from_numpy(test[:2])},
            target="x86-avx512-vnni",
            calibration={"image": calibration},
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=1024)}},
            output=Path(folder) / "model.qc",
            weights=qcompile.WeightOptions(granularity=granularity),
        )
        session = bundle.session()
        parts = [
            session.run({"image": x})["output"] for x in np.array_split(test, len(test) // 100)
        ]
    logits = np.concatenate(parts)
    return tuple(100 * float((out.argmax(1) == labels).mean()) for out in (float_logits, logits))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
