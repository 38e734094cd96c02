"""The op ``crop_resize``, of all opsets.

Sources: coremltools' op definitions, image_resizing.py, and ``CropResizeLayerParams`` in
NeuralNetwork.proto of the Core ML format.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.sampling import grid_points, linear
from qcompile.targets.coreml.reference.registry import op

_OUTSIDE = 1e-6
"""How far past the border, in pixels, a place may be to count as inside: rounding of the boxes."""
_BOX_MODES = (
    "CORNERS_HEIGHT_FIRST",
    "CORNERS_WIDTH_FIRST",
    "CENTER_SIZE_HEIGHT_FIRST",
    "CENTER_SIZE_WIDTH_FIRST",
)
Scalar = Tensor | int | float
Span = tuple[float, float]


@op("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: Scalar = 1,
    target_width: Scalar = 1,
    normalized_coordinates: Tensor | bool = False,
    spatial_scale: Scalar = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Scalar = 0.0,
) -> Tensor:
    """Resize boxes of the images ``[B, C, H, W]`` linearly to ``[h, w]``.

    The grid is that of ``resize_bilinear`` for an input that reaches from the start of the box to its
    end; a place outside of the image has the pad value, without a blend with the border.

    Args:
        x: The images.
        roi: Before iOS17: ``[N, 1, 4, 1, 1]``, each box for all images, giving ``[N, B, C, h, w]``, or
            ``[N, 1, 5, 1, 1]`` with an image's number first, giving ``[N, 1, C, h, w]``.
        boxes: Since iOS17: ``[N, 4]``, giving ``[N, C, h, w]``.
        box_indices: With ``boxes``: an image for each; by default box ``i`` is of image ``i``.
        target_height: ``h``.
        target_width: ``w``.
        normalized_coordinates: Whether 1 is the last row and column.
        spatial_scale: Multiplies the boxes.
        box_coordinate_mode: The order in a box, and whether it has corners or a center and sizes.
        sampling_mode: Of the grid.
        pad_value: Of places outside.

    Raises:
        ExecutionError: There are no boxes, or one is of no image.
    """
    sizes = [int(target_height), int(target_width)]
    rows, images = _boxes(x, roi, boxes, box_indices)
    bounded([len(rows), *x.shape[:2], *sizes], x.dtype)
    if min(sizes) < 1:
        raise ExecutionError(f"boxes cannot be resized to {sizes}")
    scale = torch.full((2,), float(spatial_scale), dtype=torch.float64)
    if bool(normalized_coordinates):
        scale = scale * torch.tensor([x.shape[2] - 1, x.shape[3] - 1])
    crops = []
    for row, image in zip(rows.double(), images, strict=True):
        chosen = x if image is None else x[image : image + 1]
        spans = _spans(row, scale, box_coordinate_mode)
        crops.append(_crop(chosen, spans, sizes, sampling_mode, float(pad_value)))
    return torch.stack(crops) if roi is not None else torch.cat(crops)


def _boxes(
    x: Tensor, roi: Tensor | None, boxes: Tensor | None, box_indices: Tensor | None
) -> tuple[Tensor, list[int | None]]:
    """Return the boxes as ``[N, 4]``, and for each the number of its image, ``None`` for all."""
    if roi is not None:
        rows = roi.reshape(roi.shape[0], -1)
        if rows.shape[1] == 4:
            return rows, [None] * len(rows)
        numbers = rows[:, 0]
        rows = rows[:, 1:]
    elif boxes is not None:
        rows = boxes
        numbers = torch.arange(len(boxes)) if box_indices is None else box_indices
    else:
        raise ExecutionError("crop_resize needs roi or boxes")
    images = [int(n) for n in numbers.tolist()]
    if rows.shape[1] != 4 or any(not 0 <= n < x.shape[0] for n in images):
        raise ExecutionError(
            f"boxes {list(rows.shape)} of images {images}, of which there are {len(x)}"
        )
    return rows, list(images)


def _spans(row: Tensor, scale: Tensor, mode: str) -> tuple[Span, Span]:
    """Return start and end of a box in pixels, of height and width."""
    if mode not in _BOX_MODES:
        raise ExecutionError(f"there is no box coordinate mode {mode!r}")
    first, second = row.reshape(2, 2)
    if "WIDTH" in mode:
        first, second = first.flip(0), second.flip(0)
    if mode.startswith("CENTER"):
        first, second = first - second / 2, first + second / 2
    starts, ends = (first * scale).tolist(), (second * scale).tolist()
    if not all(math.isfinite(v) for v in (*starts, *ends)):
        raise ExecutionError(f"the box {row.tolist()} is not finite")
    return (starts[0], ends[0]), (starts[1], ends[1])


def _crop(
    x: Tensor, spans: tuple[Span, Span], sizes: list[int], mode: str, pad_value: float
) -> Tensor:
    insides = []
    for axis, (start, end), count in zip((2, 3), spans, sizes, strict=True):
        last = x.shape[axis] - 1
        places = start + grid_points(mode, end - start, count)
        insides.append((places >= -_OUTSIDE) & (places <= last + _OUTSIDE))
        x = linear(x, axis, places.clamp(0, last))
    return x.masked_fill(~(insides[0][:, None] & insides[1]), pad_value)
