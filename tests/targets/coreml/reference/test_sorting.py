"""Sorting and non-maximum suppression, ties included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.ops import sorting as ops

Array = NDArray[Any]
Run = Callable[..., list[Any]]


def order(x: Array, axis: int, *, ascending: bool) -> Array:
    """Return a stable order; of equal values the lower index comes first."""
    keys = x.astype(np.float64)
    return np.argsort(keys if ascending else -keys, axis=axis, kind="stable")


@pytest.mark.parametrize("kind", ["float32", "float16", "int32", "int8", "uint16"])
def test_topk_takes_the_lower_index_of_equal_values(run_mil: Run, kind: str) -> None:
    x = np.random.default_rng(0).integers(0, 4, (3, 7, 2)).astype(kind)

    def build(mb: Any, x: Any) -> list[Any]:
        outputs: list[Any] = []
        for ascending in (False, True):
            common = {"x": x, "k": 4, "axis": 1, "ascending": ascending}
            outputs += mb.topk(output_indices_dtype="uint16", **common)
            outputs.append(mb.topk(sort=False, return_indices=False, **common))
        return [mb.cast(x=v, dtype="int32") for v in outputs]

    found = run_mil(build, {"x": x}, "iOS17")
    for ascending, (values, indices, only) in ((False, found[:3]), (True, found[3:])):
        best = order(x, 1, ascending=ascending)[:, :4]
        np.testing.assert_array_equal(indices, best)
        np.testing.assert_array_equal(values, np.take_along_axis(x, best, 1))
        np.testing.assert_array_equal(only, values)


@pytest.mark.parametrize("opset", ["iOS15", "iOS16", "iOS18"])
def test_topk_and_argsort_in_all_versions(run_mil: Run, fold_mil: Run, opset: str) -> None:
    x = np.random.default_rng(1).permutation(24).reshape(2, 3, 4).astype(np.float32)

    def build(mb: Any, x: Any) -> list[Any]:
        return [
            *mb.topk(x=x, k=2, axis=-2),
            *mb.topk(x=x),
            mb.argsort(x=x, axis=1, ascending=True),
            mb.argsort(x=x),
        ]

    best = order(x, 1, ascending=False)[:, :2]
    first = order(x, 2, ascending=False)[..., :1]
    wanted = [
        np.take_along_axis(x, best, 1), best, np.take_along_axis(x, first, 2), first,
        order(x, 1, ascending=True), order(x, 2, ascending=False),
    ]  # fmt: skip
    found, folded = run_mil(build, {"x": x}, opset), fold_mil(build, {"x": x}, opset)
    for got, fold, want in zip(found, folded, wanted, strict=True):
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(fold, want)


def test_argsort_of_equal_values(run_mil: Run) -> None:
    x = np.random.default_rng(2).integers(0, 3, (5, 9)).astype(np.float16)

    def build(mb: Any, x: Any) -> list[Any]:
        return [mb.argsort(x=x, axis=0), mb.argsort(x=x, axis=1, ascending=True)]

    falling, rising = run_mil(build, {"x": x}, "iOS16")
    np.testing.assert_array_equal(falling, order(x, 0, ascending=False))
    np.testing.assert_array_equal(rising, order(x, 1, ascending=True))


def test_k_of_minus_one_is_all() -> None:
    """Not through a package: coremltools cannot write one, as it takes -1 for the size."""
    x = torch.tensor([2, 3, 1])
    assert ops.topk(x, torch.tensor(-1))[0].tolist() == [3, 2, 1]


@pytest.mark.parametrize("k", [5, -2])
def test_a_k_that_the_axis_has_not(k: int) -> None:
    with pytest.raises(ExecutionError, match="the axis has 4 elements"):
        ops.topk(torch.zeros(4), torch.tensor(k))


def suppress(
    boxes: Array, scores: Array, iou: float, lowest: float, *, by_class: bool
) -> list[int]:
    """Return what stays of one batch, by pairs of boxes."""
    best, kind = scores.max(-1), scores.argmax(-1)
    kept: list[int] = []
    for index in np.argsort(-best, kind="stable"):
        rivals = [k for k in kept if not by_class or kind[k] == kind[index]]
        overlaps = [_iou(boxes[k], boxes[index]) for k in rivals]
        if best[index] >= lowest and max(overlaps, default=0.0) <= iou:
            kept.append(int(index))
    return kept or [int(np.argmax(best))]


def _iou(a: Array, b: Array) -> float:
    low, high = (
        [combine(c[i] + sign * c[i + 2] / 2 for c in (a, b)) for i in (0, 1)]
        for combine, sign in ((max, -1), (min, 1))
    )
    common = max(0.0, high[0] - low[0]) * max(0.0, high[1] - low[1])
    union = a[2] * a[3] + b[2] * b[3] - common
    return common / union if union > 0 else 0.0


def padded(values: Array, kept: list[int], size: int) -> Array:
    result = np.zeros((size, values.shape[1]), values.dtype)
    result[: len(kept[:size])] = values[kept[:size]]
    return result


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 99), st.integers(1, 12), st.integers(1, 3), st.booleans(),
    st.sampled_from([0.0, 0.3, 0.7]), st.sampled_from([-9.0, 3.0, 9.0]),
)  # fmt: skip
def test_suppression_by_definition(
    seed: int, count: int, classes: int, by_class: bool, iou: float, lowest: float
) -> None:
    random = np.random.default_rng(seed)
    boxes = random.integers(0, 6, (2, count, 4)).astype(np.float32)
    scores = random.integers(0, 5, (2, count, classes)).astype(np.float32)
    arguments = [torch.tensor(v) for v in (iou, 5, lowest, by_class)]
    found = ops.non_maximum_suppression(
        torch.from_numpy(boxes), torch.from_numpy(scores), *arguments
    )
    for row in range(2):
        kept = suppress(boxes[row], scores[row], iou, lowest, by_class=by_class)[:5]
        assert found[2][row].tolist() == kept + [-1] * (5 - len(kept))
        assert int(found[3][row]) == len(kept)
        np.testing.assert_array_equal(found[0][row], padded(boxes[row], kept, 5))
        np.testing.assert_array_equal(found[1][row], padded(scores[row], kept, 5))


@pytest.mark.parametrize("kind", ["float32", "float16"])
@pytest.mark.parametrize("by_class", [True, False])
def test_both_forms_of_suppression(run_mil: Run, kind: str, by_class: bool) -> None:
    random = np.random.default_rng(3)
    boxes = random.integers(1, 9, (2, 8, 4)).astype(kind)
    scores = random.integers(0, 9, (2, 8, 3)).astype(kind)
    common = {
        "iou_threshold": np.array(0.25, kind).item() if kind == "float32" else np.float16(0.25),
        "max_boxes": 6,
        "per_class_suppression": by_class,
    }
    lowest = 2.0 if kind == "float32" else np.float16(2.0)

    def older(mb: Any, boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(
            boxes=boxes, scores=scores, score_threshold=lowest, **common
        )

    def newer(mb: Any, boxes: Any, scores: Any) -> Any:
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, **common)

    found = run_mil(older, {"boxes": boxes, "scores": scores}, "iOS16")
    flipped = {"boxes": boxes.transpose(0, 2, 1), "scores": scores.transpose(0, 2, 1)}
    last = run_mil(newer, flipped, "iOS17")
    for row in range(2):
        kept = suppress(boxes[row], scores[row], 0.25, 2.0, by_class=by_class)[:6]
        assert found[2][row].tolist() == kept + [-1] * (6 - len(kept))
        assert found[0].dtype == kind
        assert found[3][row] == len(kept)
        np.testing.assert_array_equal(found[1][row], padded(scores[row], kept, 6))
        kept = suppress(boxes[row], scores[row], 0.25, -np.inf, by_class=by_class)[:6]
        assert last[2][row].tolist() == kept + [-1] * (6 - len(kept))
        np.testing.assert_array_equal(last[0][row].T, padded(boxes[row], kept, 6))


def test_example_of_mil() -> None:
    """Boxes of growing size around growing centres, as in coremltools' smoke test of the op."""
    boxes = torch.arange(4.0)[None, :, None].repeat(1, 1, 4)
    scores = torch.tensor([[[-3.5], [9.4], [2.3], [0.7]]])
    arguments = [torch.tensor(v) for v in (0.2, 2, 0.4, True)]
    found = ops.non_maximum_suppression(boxes, scores, *arguments)
    assert found[2].tolist() == [[1, 2]]
    assert found[3].tolist() == [2]
