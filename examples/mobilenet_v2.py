"""MobileNetV2 (Sandler et al., 2018) on 32x32 photographs: depthwise convolution, ReLU6, residuals.

Shows static INT8 of a convolutional network whose channels differ widely in range.
Run: qcompile examples/mobilenet_v2.py --target host
QCOMPILE_CIFAR10=FOLDER reads cifar10_test.npz and cifar10_calibration.npz there instead of the
small extracts in data/ (744 images to evaluate on, 256 to calibrate with).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "data"
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

# expansion, output channels, repeats, stride; strides are cut for 32x32 input
BLOCKS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 1),
    (6, 320, 1, 1),
]


def conv_bn(
    inp: int, out: int, kernel: int, stride: int = 1, groups: int = 1, *, act: bool = True
) -> nn.Sequential:
    """Convolution and batch normalization, then ReLU6 unless the block is a linear bottleneck."""
    conv = nn.Conv2d(inp, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out)]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Widen with 1x1, filter each channel with 3x3, narrow with 1x1; add the input if it fits."""

    def __init__(self, inp: int, out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inp * expansion
        self.residual = stride == 1 and inp == out
        expand = [conv_bn(inp, hidden, 1)] if expansion != 1 else []
        depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*expand, depthwise, conv_bn(hidden, out, 1, act=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """The network at half width, for ten classes."""

    def __init__(self, classes: int = 10, width: float = 0.5) -> None:
        super().__init__()

        def channels(count: int) -> int:
            return max(8, int(count * width + 4) // 8 * 8)

        inp = channels(32)
        layers: list[nn.Module] = [conv_bn(3, inp, 3)]
        for expansion, count, repeats, stride in BLOCKS:
            for i in range(repeats):
                out = channels(count)
                layers.append(InvertedResidual(inp, out, stride if i == 0 else 1, expansion))
                inp = out
        self.features = nn.Sequential(*layers, conv_bn(inp, 640, 1))
        self.classifier = nn.Linear(640, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(image).mean((2, 3)))


def read(part: str, extract: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 3, 32, 32], normalized, and labels [N] of "test" or "calibration"."""
    full = os.environ.get("QCOMPILE_CIFAR10")
    path = Path(full) / f"cifar10_{part}.npz" if full else DATA / f"cifar10_{part}_{extract}.npz"
    with np.load(path) as file:
        image, label = file["image"], file["label"]
    normalized = (image / np.float32(255) - MEAN) / STD
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), label


def model() -> nn.Module:
    from safetensors.torch import load_file

    network = MobileNetV2()
    # Stored in half precision, for size; load_state_dict copies into float32 parameters.
    network.load_state_dict(load_file(DATA / "mobilenet_v2.safetensors"))
    return network.eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(read("calibration", 256)[0][:2])}


def dynamic_shapes() -> dict[str, Any]:
    return {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}


def calibration() -> dict[str, np.ndarray]:
    return {"image": read("calibration", 256)[0]}


def evaluate(predict: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, float]:
    image, label = read("test", 744)
    hits = 0
    for start in range(0, len(image), 100):
        batch = slice(start, start + 100)
        logits = next(iter(predict({"image": image[batch]}).values()))
        hits += int((logits.argmax(1) == label[batch]).sum())
    return {"top1": 100 * hits / len(image)}
