"""A small ResNet (He et al., 2015) on handwritten digits: basic blocks, 1x1-convolution shortcuts.

Shows batch-norm folding, residual adds, and a network that keeps its accuracy in INT8.
Run: qcompile examples/resnet.py --target host
The weights are made by `python -m examples.train.train_resnet`, run beside examples/.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DATA = Path(__file__).parent / "data"


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them."""

    def __init__(self, inp: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride != 1 or inp != out:
            projection = nn.Conv2d(inp, out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three basic blocks, on 8x8, 4x4 and 2x2 maps, a mean, and a linear classifier."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.Sequential(
            BasicBlock(16, 16, 1), BasicBlock(16, 32, 2), BasicBlock(32, 64, 2)
        )
        self.classifier = nn.Linear(64, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.blocks(functional.relu(self.stem(image))).mean((2, 3)))


def to_input(image: np.ndarray) -> np.ndarray:
    """From grey levels 0 to 16, [N, 8, 8], to the network's input, [N, 1, 8, 8]."""
    return image[:, None].astype(np.float32) / 16


def model() -> nn.Module:
    from safetensors.torch import load_file

    network = ResNet()
    # Stored in half precision, for size; load_state_dict copies into float32 parameters.
    network.load_state_dict(load_file(DATA / "resnet_digits.safetensors"))
    return network.eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(calibration()["image"][:2])}


def dynamic_shapes() -> dict[str, Any]:
    return {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}


def calibration() -> dict[str, np.ndarray]:
    with np.load(DATA / "digits.npz") as file:
        return {"image": to_input(file["calibration_image"])}


def evaluate(predict: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, float]:
    with np.load(DATA / "digits.npz") as file:
        image, label = to_input(file["test_image"]), file["test_label"]
    hits = 0
    for start in range(0, len(image), 100):
        batch = slice(start, start + 100)
        logits = next(iter(predict({"image": image[batch]}).values()))
        hits += int((logits.argmax(1) == label[batch]).sum())
    return {"top1": 100 * hits / len(image)}
