"""The detector example: its scenes, its metric, and that the bundle keeps what was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(ROOT)
    from examples import detector
    from examples.train import train_detector

FLOAT = 99.19
"""What the table in examples/README.md says."""


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return detector.model()


def predict(network: torch.nn.Module, image: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {k: v.numpy() for k, v in network(torch.from_numpy(image)).items()}


def test_the_metric_in_float(network: torch.nn.Module) -> None:
    found = detector.evaluate(lambda given: predict(network, given["image"]))
    assert found["mAP50"] == pytest.approx(FLOAT, abs=0.1)


def test_two_scales_of_boxes_and_scores(network: torch.nn.Module) -> None:
    image = detector.inputs()["image"].numpy()
    found = predict(network, image)
    assert {name: value.shape for name, value in found.items()} == {
        "large_boxes": (2, 64, 4),
        "large_scores": (2, 64, 10),
        "small_boxes": (2, 256, 4),
        "small_scores": (2, 256, 10),
    }
    for scale in detector.STRIDES:
        boxes, scores = found[f"{scale}_boxes"], found[f"{scale}_scores"]
        assert (boxes[..., :2] <= boxes[..., 2:]).all()
        assert ((scores >= 0) & (scores <= 1)).all()


def test_weights_and_lists_are_small() -> None:
    sizes = [(detector.DATA / f"detector.{kind}").stat().st_size for kind in ("safetensors", "npz")]
    assert sizes[0] <= 300_000
    assert sum(sizes) <= 500_000


def test_scenes() -> None:
    """Two parts that share no photograph and no digit; every box lies on its scene."""
    test, boxes, digits = detector.scenes("test")
    calibration, *_ = detector.scenes("calibration")
    assert test.shape == (200, 3, 64, 64)
    assert calibration.shape == (64, 3, 64, 64)
    assert test.min() >= 0
    assert test.max() <= 1
    for box, digit in zip(boxes, digits, strict=True):
        assert 1 <= len(box) == len(digit) <= 3
        assert (box >= 0).all()
        assert (box <= 64).all()
        assert (box[:, 2:] - box[:, :2] >= 4).all()
        pairs = [detector.overlap(b, np.delete(box, i, 0)) for i, b in enumerate(box)]
        assert all((pair == 0).all() for pair in pairs)


def test_a_digit_is_drawn_in_its_box() -> None:
    photo, digit = np.zeros((32, 32, 3), np.uint8), np.zeros((1, 8, 8), np.uint8)
    digit[0, 2:6, 3:5] = 16
    scene, boxes = detector.draw(photo, np.array([[0, 10, 20, 16, 255, 0, 0]]), digit)
    ((left, top, right, bottom),) = boxes.astype(int)
    assert (left, right) == (20 + 6, 20 + 10)
    assert (top, bottom) == (10 + 4, 10 + 12)
    assert scene[0, top:bottom, left:right].min() > 0.3
    assert scene[1:].max() == 0
    scene[0, top:bottom, left:right] = 0
    assert scene.max() <= 0.3


def test_overlap() -> None:
    others = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6]], np.float32)
    np.testing.assert_allclose(detector.overlap(others[0], others), [1, 1 / 3, 0])


def test_only_the_strongest_of_boxes_that_overlap_is_kept() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 9, 1]], np.float32)
    assert detector.strongest(boxes, np.array([0.6, 0.9, 0.3, 0.01])) == [1, 2]


def test_a_digit_is_found_once() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [40, 0, 50, 10]], np.float32)
    truth = np.array([[0, 1, 10, 11]], np.float32)
    found = detector.hits(boxes, np.array([0.8, 0.9, 0.5]), truth)
    assert found == [(0.9, True), (0.8, False), (0.5, False)]
    assert detector.hits(boxes[:1], np.ones(1), truth[:0]) == [(1.0, False)]


@pytest.mark.parametrize(
    ("found", "count", "expected"),
    [
        ([(0.9, True), (0.8, True)], 2, 1.0),
        ([(0.9, True)], 2, 0.5),
        ([(0.8, True), (0.9, False)], 1, 0.5),
        # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: the envelope is 1 and then 2/3.
        ([(0.9, True), (0.8, False), (0.7, True)], 2, 0.5 + 0.5 * 2 / 3),
        ([], 3, 0.0),
    ],
)
def test_average_precision(found: list[tuple[float, bool]], count: int, expected: float) -> None:
    assert detector.average_precision(found, count) == pytest.approx(expected)


def test_each_digit_is_for_cells_of_its_own_scale() -> None:
    boxes = np.array([[0, 0, 12, 14], [30, 30, 54, 60]], np.float32)
    classes, wanted = train_detector.targets(boxes, np.array([3, 7]))
    large, small = classes[:64].reshape(8, 8), classes[64:].reshape(16, 16)
    assert set(large.ravel()) == {-1, 7}
    assert set(small.ravel()) == {-1, 3}
    assert large[5, 5] == 7  # its middle is at 42, 45, in strides of 8
    assert small[1, 1] == 3
    np.testing.assert_array_equal(wanted[5 * 8 + 5], boxes[1])


def test_a_perfect_answer_costs_nothing() -> None:
    label = torch.full((1, 320), -1)
    box = torch.tensor([0.0, 0, 8, 8]).expand(1, 320, 4).clone()
    label[0, 7] = 2
    scores = torch.zeros(1, 320, 10)
    scores[0, 7, 2] = 1
    output = {"large_boxes": box[:, :64], "small_boxes": box[:, 64:]}
    output |= {"large_scores": scores[:, :64], "small_scores": scores[:, 64:]}
    assert train_detector.loss(output, label, box).item() == pytest.approx(0, abs=1e-4)
    output["large_boxes"] = output["large_boxes"] + 4
    iou = 16 / 112
    shifted = train_detector.loss(output, label, box).item()
    assert shifted > 1 - (iou - 32 / 144) - 1e-4  # 1 - generalized IoU, and the score is too high


@pytest.mark.slow
def test_the_bundle_keeps_the_metric(tmp_path: Path) -> None:
    model = ROOT / "examples" / "detector.py"
    command = [sys.executable, "-m", "qcompile", model, "-t", "x86-avx512-vnni", "--max-drop", "1"]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = json.loads(done.stdout)["manifest"]
    assert manifest["quality"]["mAP50"]["before"] == pytest.approx(FLOAT, abs=0.1)
    assert [output["name"] for output in manifest["outputs"]] == [
        *("large_boxes", "large_scores", "small_boxes", "small_scores")
    ]
    upsampled = [row for row in manifest["floats"] if row["op"] in ("Resize", "Concat")]
    assert upsampled == []
