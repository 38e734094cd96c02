"""Train examples/detector.py on digits over photographs; write its weights and its lists of scenes.

Run it beside examples/: `python -m examples.train.train_detector` (needs scikit-learn; four minutes
on one core).
"""

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from examples.detector import (
    CLASSES,
    DATA,
    LARGE,
    SIDE,
    STRIDES,
    Boxes,
    Detector,
    draw,
    evaluate,
)

SCENES, STEPS, BATCH, HELD_OUT = 6000, 3500, 32, 450
TEST, CALIBRATION, MOST = 200, 64, 3
SIZES = (14, 36)


def arrange(count: int, digits: int, rng: np.random.Generator) -> np.ndarray:
    """Return [count, MOST, 7] lists for `draw`; no two digits overlap, and an index of -1 is none."""
    lists = np.full((count, MOST, 7), -1, np.int16)
    for rows in lists:
        taken = np.zeros((SIDE, SIDE), bool)
        for row in rows[: rng.integers(1, MOST + 1)]:
            size = int(rng.integers(*SIZES))
            top, left = (int(v) for v in rng.integers(0, SIDE - size + 1, 2))
            place = taken[top : top + size, left : left + size]
            if not place.any():
                place[:] = True
                row[:] = (rng.integers(digits), top, left, size, *rng.integers(120, 256, 3))
    return lists


def targets(boxes: Boxes, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return class (or -1) and box of each cell, the large head's cells first.

    A cell within one and a half strides of a digit's middle, on the digit's own scale, is for it.
    """
    classes, wanted = [], []
    for name in ("large", "small"):
        centre = (np.arange(SIDE // STRIDES[name]) + 0.5) * STRIDES[name]
        x, y = (v.ravel() for v in np.meshgrid(centre, centre))
        of = np.full(len(x), -1)
        for index, (left, top, right, bottom) in enumerate(boxes):
            if (max(right - left, bottom - top) >= LARGE) == (name == "large"):
                away = np.maximum(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2))
                of[away < 1.5 * STRIDES[name]] = index
        classes.append(np.where(of >= 0, label[of], -1))
        wanted.append(boxes[of])
    return np.concatenate(classes), np.concatenate(wanted)


def overlaps(found: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalized IoU (Rezatofighi et al., 2019) of pairs of boxes, [count, 4]."""

    def area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (high - low).clamp(min=0).prod(1)

    (a, b), (c, d) = found.split(2, 1), wanted.split(2, 1)
    common = area(torch.maximum(a, c), torch.minimum(b, d))
    union = area(a, b) + area(c, d) - common
    hull = area(torch.minimum(a, c), torch.maximum(b, d))
    iou = common / union.clamp(min=1e-6)
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)


def loss(output: dict[str, torch.Tensor], label: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Generalized IoU loss, and quality focal loss (Li et al., 2020): a score is to be the IoU."""
    boxes, score = (
        torch.cat([output[f"large_{what}"], output[f"small_{what}"]], 1)
        for what in ("boxes", "scores")
    )
    on = label >= 0
    iou, generalized = overlaps(boxes[on], box[on])
    wanted = torch.zeros_like(score)
    wanted[on] = functional.one_hot(label[on], CLASSES) * iou.detach()[:, None]
    score = score.clamp(1e-6, 1 - 1e-6)
    entropy = functional.binary_cross_entropy(score, wanted, reduction="none")
    focal = (entropy * (score - wanted).detach() ** 2).sum()
    return (4 * focal + (1 - generalized).sum()) / on.sum()


def train(photos: np.ndarray, digits: np.ndarray, label: np.ndarray) -> Detector:
    rng = np.random.default_rng(1)
    things = [rows[rows[:, 0] >= 0] for rows in arrange(SCENES, len(digits), rng)]
    photo = rng.integers(0, len(photos), SCENES)
    drawn = [draw(photos[p], t, digits) for p, t in zip(photo, things, strict=True)]
    image = torch.from_numpy(np.stack([s for s, _ in drawn]))
    cells = [targets(b, label[t[:, 0]]) for (_, b), t in zip(drawn, things, strict=True)]
    classes, boxes = (torch.from_numpy(np.stack(part)) for part in zip(*cells, strict=True))
    network = Detector()
    for head in (network.large, network.small):
        torch.nn.init.constant_(head.score.bias, -4.0)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    for step in range(STEPS):
        rows = torch.randint(0, SCENES, (BATCH,))
        shade = torch.empty(BATCH, 3, 1, 1).uniform_(0.8, 1.2)
        value = loss(network((image[rows] * shade).clamp(max=1)), classes[rows], boxes[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0:
            print(f"step {step}: loss {value.item():.3f}", flush=True)
    return network.eval()


def main() -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with np.load(DATA / "cifar10_calibration_256.npz") as file:
        photos = file["image"]
    # As train_resnet splits them: digits.npz has the held-out ones and the first of the others.
    digits = load_digits()
    rest = np.random.default_rng(0).permutation(len(digits.images))[HELD_OUT:]
    with np.load(DATA / "digits.npz") as file:
        held_out, known = file["test_image"], file["calibration_image"]
    image, label = digits.images[rest].astype(np.uint8), digits.target[rest]
    assert (image[: len(known)] == known).all()
    rng = np.random.default_rng(0)
    lists = {"test": arrange(TEST, len(held_out), rng)}
    lists["calibration"] = arrange(CALIBRATION, len(known), rng)
    np.savez_compressed(DATA / "detector.npz", **lists)
    network = train(photos, image, label)
    state = {k: v.half() if v.dim() > 1 else v for k, v in network.state_dict().items()}
    save_file(state, DATA / "detector.safetensors")

    @torch.no_grad()
    def predict(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in network(torch.from_numpy(batch["image"])).items()}

    print(f"held-out mean average precision at 0.5: {evaluate(predict)['mAP50']:.2f}")


if __name__ == "__main__":
    main()
