"""Sorting and selecting by order; of equal values the one with the lower index comes first.

MIL leaves the order of equal values open. A stable sort fixes it, so that results can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.registry import op


@op("argsort", floats="as_is")
def argsort(x: Tensor, axis: Tensor | int = -1, ascending: Tensor | bool = False) -> Tensor:
    """Return the indices that sort ``x`` along an axis."""
    order = x.argsort(dim=int(axis), descending=not bool(ascending), stable=True)
    return order.int()


@op("topk", floats="as_is")
def topk(
    x: Tensor,
    k: Tensor | int = 1,
    axis: Tensor | int = -1,
    ascending: Tensor | bool = False,
    sort: Tensor | bool = True,
    return_indices: Tensor | bool = True,
    output_indices_dtype: str = "int32",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the ``k`` largest values, or the smallest if ``ascending``, and their indices.

    With ``sort=False`` any order is right, so they are sorted too. A ``k`` of -1 is all (iOS 17).
    """
    along = int(axis) % x.ndim
    count = x.shape[along] if int(k) == -1 else int(k)
    if not 0 <= count <= x.shape[along]:
        raise ExecutionError(f"k is {count}, and the axis has {x.shape[along]} elements")
    values, order = x.sort(dim=along, descending=not bool(ascending), stable=True)
    best = values.narrow(along, 0, count)
    if not bool(return_indices):
        return best
    kind = torch.uint16 if output_indices_dtype == "uint16" else torch.int32
    return best, order.narrow(along, 0, count).to(kind)


@op("non_maximum_suppression")
def non_maximum_suppression(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: Tensor,
    max_boxes: Tensor,
    score_threshold: Tensor | None = None,
    per_class_suppression: Tensor | bool = False,
) -> tuple[Tensor, ...]:
    """Keep the boxes that overlap no better one, best first.

    A box's score is that of its best class. Boxes below ``score_threshold`` are left out; if that is all
    of them, the best one is kept. What is missing to ``max_boxes`` is 0, and -1 among the indices
    (NeuralNetwork.proto, ``NonMaximumSuppressionLayerParams``). iOS 17 has no ``score_threshold`` and no
    fourth result, and has the boxes in the last axis.
    """
    since_ios17 = score_threshold is None
    if since_ios17:
        boxes, scores = boxes.mT, scores.mT
    lowest = -torch.inf if score_threshold is None else float(score_threshold)
    size = int(max_boxes)
    bounded((len(scores), size, max(scores.shape[2], 4)), scores.dtype)
    chosen = torch.full((len(scores), size), -1)
    for row in range(len(scores)):
        best, kind = scores[row].max(-1)
        kind = kind if bool(per_class_suppression) else torch.zeros_like(kind)
        kept = _suppress(boxes[row], best, kind, float(iou_threshold), lowest, size)
        chosen[row, : len(kept)] = kept
    found = [_selected(boxes, chosen), _selected(scores, chosen)]
    if since_ios17:
        return (*(values.mT for values in found), chosen.int())
    return (*found, chosen.int(), (chosen >= 0).sum(1).int())


def _suppress(
    boxes: Tensor, scores: Tensor, kind: Tensor, threshold: float, lowest: float, size: int
) -> Tensor:
    """Return the indices of the first ``size`` boxes that stay, in descending order of score."""
    order = scores.argsort(descending=True, stable=True)
    left = order[scores[order] >= lowest]
    left = left if len(left) else order[:1]
    kept: list[Tensor] = []
    while len(left) and len(kept) < size:
        first, left = left[0], left[1:]
        kept.append(first)
        beaten = (_overlap(boxes[first], boxes[left]) > threshold) & (kind[left] == kind[first])
        left = left[~beaten]
    return torch.stack(kept) if kept else order[:0]


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of a box with others, ``(x, y, width, height)`` from the centre."""
    low = torch.maximum(box[:2] - box[2:] / 2, others[:, :2] - others[:, 2:] / 2)
    high = torch.minimum(box[:2] + box[2:] / 2, others[:, :2] + others[:, 2:] / 2)
    common = (high - low).clamp(min=0).prod(1)
    union = box[2:].prod() + others[:, 2:].prod(1) - common
    return torch.where(union > 0, common / union, 0.0)


def _selected(values: Tensor, chosen: Tensor) -> Tensor:
    rows = torch.arange(len(values))[:, None]
    found = values[rows, chosen.clamp(min=0)]
    return torch.where(chosen[..., None] >= 0, found, 0.0)
