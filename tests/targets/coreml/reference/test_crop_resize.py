"""``crop_resize`` of all opsets through saved packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import crop_resize as ops
from qcompile.targets.coreml.reference.ops.resize import resize_bilinear
from qcompile.targets.coreml.reference.ops.sampling import MODES

RAMP = np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
"""Element ``(row, column)`` is ``4 row + column + 1``, and so is each value between."""
OUTSIDE = -5.0


def ramp(rows: Any, columns: Any) -> Any:
    """What RAMP has at all pairs of places, and OUTSIDE past its border."""
    grid = 4 * np.asarray(rows)[:, None] + np.asarray(columns) + 1
    out = [(np.asarray(p) < 0) | (np.asarray(p) > 3) for p in (rows, columns)]
    return np.where(out[0][:, None] | out[1], OUTSIDE, grid)


@pytest.mark.parametrize(
    ("box", "size", "expected"),
    [
        ([1, 1, 2, 2], 2, ramp([1, 2], [1, 2])),
        ([1, 1, 2, 2], 4, ramp(np.linspace(1, 2, 4), np.linspace(1, 2, 4))),
        ([1, 1, 2, 2], 1, ramp([1.5], [1.5])),
        ([2, 2, 1, 1], 2, ramp([2, 1], [2, 1])),
        ([0, 1, 3.5, 2], 2, ramp([0, 3.5], [1, 2])),
    ],
)
@pytest.mark.parametrize("opset", ["iOS15", "iOS16", "iOS17"])
def test_boxes_of_pixels(
    run_mil: Any, opset: str, box: list[float], size: int, expected: Any
) -> None:
    expected = expected if opset != "iOS15" else np.where(expected == OUTSIDE, 0, expected)

    def build(mb: Any, x: Any) -> Any:
        more: dict[str, Any] = {} if opset == "iOS15" else {"pad_value": np.float32(OUTSIDE)}
        flat = np.array(box, np.float32)
        more |= {"boxes": flat[None]} if opset == "iOS17" else {"roi": flat.reshape(1, 1, 4, 1, 1)}
        return mb.crop_resize(
            x=x, target_width=size, target_height=size, sampling_mode="ALIGN_CORNERS", **more
        )

    (found,) = run_mil(build, {"x": RAMP}, opset)
    assert found.shape == (*(1,) * (2 if opset == "iOS17" else 3), size, size)
    np.testing.assert_allclose(found.reshape(size, size), expected, rtol=1e-6)


@pytest.mark.parametrize("opset", ["iOS16", "iOS17"])
def test_normalized_boxes_of_numbered_images(run_mil: Any, opset: str) -> None:
    boxes = np.array([[0.1, 0.3, 1.3, 1], [0.5, 1.8, 1, 0.3], [0, 0.4, 0.6, 0.7]], np.float32)

    def build(mb: Any, x: Any) -> Any:
        numbers = np.zeros(3, np.int32)
        roi = np.concatenate([numbers[:, None].astype(np.float32), boxes], 1)
        more = (
            {"boxes": boxes, "box_indices": numbers}
            if opset == "iOS17"
            else {"roi": roi.reshape(3, 1, 5, 1, 1)}
        )
        return mb.crop_resize(
            x=x, target_width=2, target_height=2, normalized_coordinates=True,
            sampling_mode="ALIGN_CORNERS", pad_value=np.float32(OUTSIDE), **more,
        )  # fmt: skip

    (found,) = run_mil(build, {"x": RAMP}, opset)
    expected = np.stack([ramp(b[[0, 2]] * 3, b[[1, 3]] * 3) for b in boxes.astype(float)])
    np.testing.assert_allclose(found.reshape(3, 2, 2), expected, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_box_of_whole_pixels_is_a_resized_crop(mode: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((3, 2, 6, 7)))
    (top, down), (left, right) = (sorted(rng.integers(0, n, 2).tolist()) for n in (6, 7))
    sizes = rng.integers(1, 6, 2).tolist()
    found = ops.crop_resize(
        x, boxes=torch.tensor([[top, left, down, right]]) * 2.0, box_indices=torch.tensor([2]),
        target_height=sizes[0], target_width=sizes[1], spatial_scale=0.5, sampling_mode=mode,
    )  # fmt: skip
    crop = x[2:, :, top : down + 1, left : right + 1]
    torch.testing.assert_close(
        found, resize_bilinear(crop, sizes[0], sizes[1], mode), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("mode", "box"),
    [
        ("CORNERS_HEIGHT_FIRST", [1, 0, 3, 1]),
        ("CORNERS_WIDTH_FIRST", [0, 1, 1, 3]),
        ("CENTER_SIZE_HEIGHT_FIRST", [2, 0.5, 2, 1]),
        ("CENTER_SIZE_WIDTH_FIRST", [0.5, 2, 1, 2]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_orders_of_the_box(run_mil: Any, mode: str, box: list[float], dtype: Any) -> None:
    def build(mb: Any, x: Any) -> Any:
        return mb.crop_resize(
            x=x, boxes=np.array([box], np.float32), target_height=2, target_width=2,
            box_coordinate_mode=mode, sampling_mode="STRICT_ALIGN_CORNERS",
        )  # fmt: skip

    (found,) = run_mil(build, {"x": RAMP.astype(dtype)})
    np.testing.assert_allclose(found[0, 0], ramp([1, 3], [0, 1]), rtol=1e-6)
    assert found.dtype == dtype


def test_each_box_for_all_images_or_for_its_own() -> None:
    x = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1)
    every = ops.crop_resize(x, roi=torch.zeros(2, 1, 4, 1, 1))
    assert every.shape == (2, 3, 1, 1, 1)
    assert every[1].flatten().tolist() == [1.0, 2.0, 3.0]
    numbered = torch.zeros(2, 1, 5, 1, 1)
    numbered[:, 0, 0] = torch.tensor([2.0, 1.0]).reshape(2, 1, 1)
    own = ops.crop_resize(x, roi=numbered)
    assert own.shape == (2, 1, 1, 1, 1)
    assert own.flatten().tolist() == [3.0, 2.0]
    assert ops.crop_resize(x, boxes=torch.zeros(2, 4)).flatten().tolist() == [1.0, 2.0]


def test_boxes_that_cannot_be_are_refused() -> None:
    x, box = torch.ones(1, 1, 4, 4), torch.zeros(1, 4)
    refused: list[tuple[dict[str, Any], str]] = [
        ({}, "roi or boxes"),
        ({"boxes": box, "box_indices": torch.tensor([1])}, "of which there are 1"),
        ({"boxes": box, "box_indices": torch.tensor([-1])}, "of which there are 1"),
        ({"boxes": torch.zeros(2, 4)}, "of which there are 1"),
        ({"boxes": box, "box_coordinate_mode": "AREA"}, "box coordinate mode"),
        ({"boxes": box, "sampling_mode": "HALF"}, "sampling mode"),
        ({"boxes": box / 0}, "not finite"),
        ({"boxes": box, "target_height": 0}, "cannot be resized"),
        ({"boxes": box, "target_height": 1 << 20, "target_width": 1 << 20}, "GiB"),
    ]
    for attributes, message in refused:
        with pytest.raises(ExecutionError, match=message):
            ops.crop_resize(x, **attributes)
