"""Values of images at given coordinates: ``resample`` and ``affine``.

Source of the formulas: coremltools' op definitions, image_resizing.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.registry import op

Scalar = Tensor | int | float


@op("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Scalar,
    coordinates_mode: str,
    align_corners: Tensor | bool,
) -> Tensor:
    """Values of ``[B, C, H, W]`` at ``[B, h, w, 2]``, column first.

    ``nearest`` takes the even one of two pixels that are equally near, as torch's ``grid_sample`` and
    as coremltools' tests expect.

    Raises:
        ExecutionError: There is no such mode, or the batches differ.
    """
    if x.shape[0] != coordinates.shape[0] or coordinates.shape[-1] != 2:
        raise ExecutionError(f"coordinates {list(coordinates.shape)} are not for {list(x.shape)}")
    bounded([*x.shape[:2], *coordinates.shape[1:3]], x.dtype)
    fill = float(padding_value) if padding_mode == "constant" else 0.0
    axes = []
    for axis, size in ((0, x.shape[3]), (1, x.shape[2])):
        place = _pixels(coordinates[..., axis].float(), size, coordinates_mode, bool(align_corners))
        axes.append(_folded(place, size, padding_mode))
    if sampling_mode == "nearest":
        return _at(x, axes[1].round(), axes[0].round(), fill)
    if sampling_mode != "bilinear":
        raise ExecutionError(f"there is no sampling mode {sampling_mode!r}")
    return _bilinear(x, axes[1], axes[0], fill)


@op("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: Scalar,
    output_width: Scalar,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Scalar,
    coordinates_mode: str,
    align_corners: Tensor | bool,
) -> Tensor:
    """Sample ``x`` at ``(a0 x + a1 y + a2, b0 x + b1 y + b2)`` of each output pixel ``(x, y)``.

    Both run from -1 to 1 over the images. MIL's text has only ``align_corners=True``; otherwise -1 and
    1 are the outer edges of the border's pixels, as in torch's ``affine_grid``.

    Raises:
        ExecutionError: Another mode than ``bilinear``, ``constant`` 0 and
            ``normalized_minus_one_to_one``, which are all that MIL has, or matrices for another batch.
    """
    modes = (sampling_mode.lower(), padding_mode.lower(), coordinates_mode.lower())
    if modes != ("bilinear", "constant", "normalized_minus_one_to_one") or float(padding_value):
        raise ExecutionError(f"affine has no modes {modes} with padding {float(padding_value)}")
    if transform_matrix.shape not in ((1, 6), (x.shape[0], 6)):
        raise ExecutionError(
            f"matrices {list(transform_matrix.shape)} are not for {x.shape[0]} images"
        )
    shape = bounded([*x.shape[:2], int(output_height), int(output_width)], x.dtype)
    matrices = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    grid = F.affine_grid(matrices, list(shape), align_corners=bool(align_corners))
    return resample(x, grid, *modes[:2], 0.0, modes[2], align_corners)


def _pixels(place: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Return coordinates as pixels, 0 being the middle of the first."""
    if mode == "unnormalized":
        return place
    if mode not in ("normalized_minus_one_to_one", "normalized_zero_to_one"):
        raise ExecutionError(f"there is no coordinates mode {mode!r}")
    share = place if mode == "normalized_zero_to_one" else (place + 1) / 2
    return share * (size - 1) if align_corners else share * size - 0.5


def _folded(place: Tensor, size: int, padding_mode: str) -> Tensor:
    """Return where in the image a place is found, past its border too."""
    if padding_mode == "constant":
        return place
    if padding_mode == "reflection":
        place = _mirrored(place, size - 1.0)
    elif padding_mode == "symmetric":
        place = _mirrored(place + 0.5, size) - 0.5
    elif padding_mode != "border":
        raise ExecutionError(f"there is no padding mode {padding_mode!r}")
    return place.clamp(0, size - 1)


def _mirrored(place: Tensor, length: float) -> Tensor:
    """Return a place reflected at 0 and at ``length`` until it lies between."""
    if length == 0:
        return torch.zeros_like(place)
    return length - (place.abs().remainder(2 * length) - length).abs()


def _bilinear(x: Tensor, row: Tensor, column: Tensor, fill: float) -> Tensor:
    top, left = row.floor(), column.floor()
    down, right = (row - top)[:, None], (column - left)[:, None]
    above = torch.lerp(_at(x, top, left, fill), _at(x, top, left + 1, fill), right)
    below = torch.lerp(_at(x, top + 1, left, fill), _at(x, top + 1, left + 1, fill), right)
    return torch.lerp(above, below, down)


def _at(x: Tensor, row: Tensor, column: Tensor, fill: float) -> Tensor:
    """Return the pixels of ``[B, C, H, W]`` at whole places ``[B, h, w]``, and ``fill`` outside."""
    height, width = x.shape[2:]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = torch.where(inside, row, 0).long() * width + torch.where(inside, column, 0).long()
    found = x.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, x.shape[1], -1))
    return found.reshape(*x.shape[:2], *row.shape[1:]).masked_fill(~inside[:, None], fill)
