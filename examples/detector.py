"""A detector of coloured digits on photographs: where each is and which, without anchors.

Shows a network of several outputs and two scales: a backbone, a feature pyramid (Lin et al., 2017)
that upsamples (nearest, then bilinear) and concatenates, and two heads without non-maximum
suppression inside, as FCOS has them (Tian et al., 2019).
Run: qcompile examples/detector.py --target host
The scenes are put together from data/digits.npz and the CIFAR-10 images by the lists in
data/detector.npz; `python -m examples.train.train_detector`, run beside examples/, makes these lists
and the weights.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DATA = Path(__file__).parent / "data"
SIDE, CLASSES, BATCH = 64, 10, 50
STRIDES = {"small": 4, "large": 8}
LARGE = 20  # pixels; a digit whose longer side is at least this belongs to the coarser head
REACH = 6  # strides from a cell to the farthest edge that its box can have
Boxes = np.ndarray  # [count, 4]: left, top, right, bottom, in pixels


def conv(inp: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and ReLU."""
    layer = nn.Conv2d(inp, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(out), nn.ReLU())


class Head(nn.Module):
    """Boxes in pixels, [N, cells, 4], and scores from 0 to 1, [N, cells, classes], of one scale."""

    def __init__(self, inp: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.features = conv(inp, inp)
        self.distance = nn.Conv2d(inp, 4, 1)
        self.score = nn.Conv2d(inp, CLASSES, 1)
        centre = (torch.arange(SIDE // stride) + 0.5) * stride
        y, x = torch.meshgrid(centre, centre, indexing="ij")
        grid = torch.stack([x, y], 2).reshape(1, -1, 2)
        self.register_buffer("centre", torch.cat([grid, grid], 2), persistent=False)
        sign = torch.tensor([-1.0, -1.0, 1.0, 1.0])
        self.register_buffer("reach", sign * stride * REACH, persistent=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.features(x)
        distance = torch.sigmoid(self.distance(x)).flatten(2).transpose(1, 2)
        score = torch.sigmoid(self.score(x)).flatten(2).transpose(1, 2)
        return self.centre + distance * self.reach, score


class Detector(nn.Module):
    """Maps of 32, 16, 8 and 4 cells a side; heads on those of 16 and 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16, stride=2)
        self.stage4 = nn.Sequential(conv(16, 24, stride=2), conv(24, 24))
        self.stage8 = nn.Sequential(conv(24, 40, stride=2), conv(40, 40))
        self.stage16 = nn.Sequential(conv(40, 64, stride=2), conv(64, 32, 1))
        self.merge8 = conv(32 + 40, 40)
        self.lateral4 = conv(40, 24, 1)
        self.merge4 = conv(24 + 24, 32)
        self.large = Head(40, STRIDES["large"])
        self.small = Head(32, STRIDES["small"])

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x4 = self.stage4(self.stem(image))
        x8 = self.stage8(x4)
        up = functional.interpolate(self.stage16(x8), scale_factor=2.0, mode="nearest")
        x8 = self.merge8(torch.cat([up, x8], 1))
        up = functional.interpolate(self.lateral4(x8), scale_factor=2.0, mode="bilinear")
        x4 = self.merge4(torch.cat([up, x4], 1))
        (large, large_score), (small, small_score) = self.large(x8), self.small(x4)
        return {
            **{"large_boxes": large, "large_scores": large_score},
            **{"small_boxes": small, "small_scores": small_score},
        }


def enlarge(digit: np.ndarray, size: int) -> np.ndarray:
    """From grey levels 0 to 16, [8, 8], to opacity, [size, size], bilinear."""
    place = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    low = np.minimum(place.astype(int), 6)
    weight = np.zeros((size, 8), np.float32)
    weight[np.arange(size), low] = 1 - (place - low)
    weight[np.arange(size), low + 1] = place - low
    return weight @ (digit.astype(np.float32) / 16) @ weight.T


def draw(photo: np.ndarray, things: np.ndarray, digits: np.ndarray) -> tuple[np.ndarray, Boxes]:
    """Put digits on a photograph.

    Args:
        photo: [32, 32, 3], uint8; twice as large and darkened it is the background.
        things: A row a digit: its index, top, left, size, red, green, blue.
        digits: [N, 8, 8].

    Returns:
        The scene, [3, 64, 64] from 0 to 1, and the box of each digit, in order.
    """
    scene = photo.repeat(2, 0).repeat(2, 1).transpose(2, 0, 1).astype(np.float32, order="C")
    scene *= 0.7 / 255
    boxes = []
    for index, top, left, size, *colour in things.tolist():
        opacity = enlarge(digits[index], size)
        part = scene[:, top : top + size, left : left + size]
        part += opacity * (np.array(colour, np.float32)[:, None, None] / 255 - part)
        rows, columns = (np.flatnonzero((opacity > 0.3).any(axis)) for axis in (1, 0))
        corner = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        boxes.append(corner)
    return scene, np.array(boxes, np.float32)


def scenes(split: str) -> tuple[np.ndarray, list[Boxes], list[np.ndarray]]:
    """Return images, [N, 3, 64, 64], and of each the boxes and the indices of its digits."""
    photos = {"test": "cifar10_test_744", "calibration": "cifar10_calibration_256"}[split]
    with np.load(DATA / "digits.npz") as file:
        digits = file[f"{split}_image"]
    with np.load(DATA / f"{photos}.npz") as file:
        photo = file["image"]
    with np.load(DATA / "detector.npz") as file:
        lists = [rows[rows[:, 0] >= 0] for rows in file[split].astype(int)]
    drawn = [draw(photo[i], things, digits) for i, things in enumerate(lists)]
    return np.stack([s for s, _ in drawn]), [b for _, b in drawn], [rows[:, 0] for rows in lists]


def model() -> nn.Module:
    from safetensors.torch import load_file

    network = Detector()
    # Stored in half precision, for size; load_state_dict copies into float32 parameters.
    network.load_state_dict(load_file(DATA / "detector.safetensors"))
    return network.eval()


def inputs() -> dict[str, torch.Tensor]:
    return {"image": torch.from_numpy(calibration()["image"][:2])}


def dynamic_shapes() -> dict[str, Any]:
    return {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}


def calibration() -> dict[str, np.ndarray]:
    return {"image": scenes("calibration")[0]}


def overlap(box: np.ndarray, others: Boxes) -> np.ndarray:
    """Intersection over union of one box with others."""
    corner = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.clip(corner[1] - corner[0], 0, None).prod(1)
    areas = [(b[..., 2:] - b[..., :2]).prod(-1) for b in (box, others)]
    return common / np.maximum(areas[0] + areas[1] - common, 1e-6)


def strongest(boxes: Boxes, score: np.ndarray) -> list[int]:
    """Non-maximum suppression: indices, best first, of boxes that overlap no better one by half."""
    kept: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if score[index] < 0.02:
            break
        if not kept or overlap(boxes[index], boxes[kept]).max() < 0.5:
            kept.append(int(index))
    return kept


def hits(boxes: Boxes, score: np.ndarray, truth: Boxes) -> list[tuple[float, bool]]:
    """Return score and success of the detections of one class in one image.

    A detection succeeds if it overlaps a digit by half that no better one has found.
    """
    found, free = [], list(range(len(truth)))
    for index in strongest(boxes, score):
        shared = overlap(boxes[index], truth[free])
        success = bool(free) and bool(shared.max() >= 0.5)
        if success:
            free.pop(int(shared.argmax()))
        found.append((float(score[index]), success))
    return found


def average_precision(found: list[tuple[float, bool]], count: int) -> float:
    """Area under precision over recall, as PASCAL VOC has it since 2010 (Everingham et al.)."""
    success = np.array([s for _, s in sorted(found, key=lambda f: -f[0])], bool)
    precision = success.cumsum() / np.arange(1, len(success) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[success].sum()) / count


def evaluate(predict: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, float]:
    """Mean average precision over the ten digits, at an overlap of a half, in percent."""
    image, truth, index = scenes("test")
    with np.load(DATA / "digits.npz") as file:
        label = [file["test_label"][rows] for rows in index]
    found: list[list[tuple[float, bool]]] = [[] for _ in range(CLASSES)]
    for start in range(0, len(image), BATCH):
        output = predict({"image": image[start : start + BATCH]})
        boxes, score = (
            np.concatenate([output[f"{scale}_{what}"] for scale in STRIDES], 1)
            for what in ("boxes", "scores")
        )
        for row, (b, s) in enumerate(zip(boxes, score, strict=True), start):
            for digit in range(CLASSES):
                found[digit] += hits(b, s[:, digit], truth[row][label[row] == digit])
    counts = np.bincount(np.concatenate(label), minlength=CLASSES)
    areas = [average_precision(f, int(c)) for f, c in zip(found, counts, strict=True)]
    return {"mAP50": 100 * float(np.mean(areas))}
