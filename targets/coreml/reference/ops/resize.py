"""Resizing to a size or by a factor, and cropping.

Source of the formulas: coremltools' op definitions, image_resizing.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.ops.sampling import grid_points, linear, nearest
from qcompile.targets.coreml.reference.registry import op

Scalar = Tensor | int | float
_TORCH = {"STRICT_ALIGN_CORNERS": True, "UNALIGN_CORNERS": False}
"""Sampling modes that torch has, by its ``align_corners``."""


@op("upsample_nearest_neighbor")
def upsample_nearest_neighbor(
    x: Tensor, scale_factor_height: Scalar = 1, scale_factor_width: Scalar = 1
) -> Tensor:
    """Element ``floor(i * size / new_size)`` for ``i``, along the last two axes."""
    sizes = _scaled(x, scale_factor_height, scale_factor_width)
    bounded([*x.shape[:-2], *sizes], x.dtype)
    for axis, count in zip((-2, -1), sizes, strict=True):
        index = torch.arange(count) * x.shape[axis] // max(1, count)
        x = x.index_select(axis, index)
    return x


@op("resize_nearest_neighbor")
def resize_nearest_neighbor(
    x: Tensor, target_size_height: Scalar, target_size_width: Scalar
) -> Tensor:
    """Element ``floor((i + 0.5) * size / new_size)`` for ``i``, along the last two axes.

    MIL's text does not say which is nearest; coremltools lowers TensorFlow's ``half_pixel_centers`` to
    this op, but the other convention to ``upsample_nearest_neighbor``.
    """
    return _resized(
        x, [int(target_size_height), int(target_size_width)], "DEFAULT", is_linear=False
    )


@op("upsample_bilinear")
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: Scalar = 1,
    scale_factor_width: Scalar = 1,
    align_corners: Tensor | bool = True,
    half_pixel_centers: Tensor | bool | None = None,
) -> Tensor:
    """Linear along the last two axes; the spacing comes from the sizes, not from the factors.

    Raises:
        ExecutionError: ``half_pixel_centers`` together with ``align_corners``.
    """
    aligns = bool(align_corners)
    halves = not aligns if half_pixel_centers is None else bool(half_pixel_centers)
    if aligns and halves:
        raise ExecutionError("align_corners and half_pixel_centers exclude each other")
    sizes = _scaled(x, scale_factor_height, scale_factor_width)
    unaligned = "UNALIGN_CORNERS" if halves else "DEFAULT"
    return _resized(x, sizes, "STRICT_ALIGN_CORNERS" if aligns else unaligned)


@op("resize_bilinear")
def resize_bilinear(
    x: Tensor,
    target_size_height: Scalar = 1,
    target_size_width: Scalar = 1,
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Linear along the last two axes, at the grid points of the sampling mode."""
    return _resized(x, [int(target_size_height), int(target_size_width)], sampling_mode)


@op("resize")
def resize(
    x: Tensor,
    shape: Tensor,
    resized_dims: Scalar,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Tensor:
    """Resize the last ``resized_dims`` axes to the last numbers of ``shape``; 0 keeps a size.

    Integers that are resized linearly are truncated.

    Raises:
        ExecutionError: The shape does not fit, or there is no such mode.
    """
    wanted, count = [int(v) for v in shape.tolist()], int(resized_dims)
    if not count <= len(wanted) <= x.ndim:
        raise ExecutionError(f"shape {wanted} does not fit {count} resized dimensions of {x.ndim}")
    if interpolation_mode not in ("LINEAR", "NEAREST_NEIGHBOR"):
        raise ExecutionError(f"there is no interpolation mode {interpolation_mode!r}")
    sizes = [
        new or old
        for new, old in zip(wanted[len(wanted) - count :], x.shape[x.ndim - count :], strict=True)
    ]
    is_linear = interpolation_mode == "LINEAR"
    if x.is_floating_point() or not is_linear:
        return _resized(x, sizes, sampling_mode, is_linear)
    return _resized(x.double(), sizes, sampling_mode).to(x.dtype)


@op("crop")
def crop(x: Tensor, crop_height: Tensor, crop_width: Tensor) -> Tensor:
    """Drop rows from top and bottom, and columns from left and right.

    Raises:
        ExecutionError: An amount is negative, or nothing would be left.
    """
    for axis, amounts in ((-2, crop_height), (-1, crop_width)):
        before, after = (int(v) for v in amounts.reshape(-1).tolist())
        left = x.shape[axis] - before - after
        if min(before, after) < 0 or left < 1:
            raise ExecutionError(f"{(before, after)} cannot be cropped from {x.shape[axis]}")
        x = x.narrow(axis, before, left)
    return x


def _scaled(x: Tensor, *factors: Scalar) -> list[int]:
    """Return ``floor(size * factor)`` of the last two axes; in float32, as coremltools declares it."""
    sizes = x.shape[-2:]
    exact = [torch.as_tensor(f) for f in factors]
    return [
        int((f.float() * n).floor()) if f.is_floating_point() else int(f) * n
        for f, n in zip(exact, sizes, strict=True)
    ]


def _resized(x: Tensor, sizes: list[int], mode: str, is_linear: bool = True) -> Tensor:
    first = x.ndim - len(sizes)
    bounded([*x.shape[:first], *sizes], x.dtype)
    if min(sizes, default=1) < 1 or x.numel() == 0:
        raise ExecutionError(f"{list(x.shape)} cannot be resized to {sizes}")
    if is_linear and mode in _TORCH and len(sizes) == 2:
        images = x.reshape(1, -1, *x.shape[first:])
        found = F.interpolate(images, sizes, mode="bilinear", align_corners=_TORCH[mode])
        return found.reshape(*x.shape[:first], *sizes)
    for axis, count in enumerate(sizes, first):
        size = x.shape[axis]
        if is_linear:
            x = linear(x, axis, grid_points(mode, size - 1, count))
        else:
            x = x.index_select(axis, nearest(mode, size, count))
    return x
