"""Where a resized axis takes its values from.

Sources: the formulas of ``resize_bilinear`` in coremltools' op definitions, image_resizing.py, and of
``SamplingMode`` in NeuralNetwork.proto of the Core ML format.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError

MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
"""All sampling modes."""


def grid_points(mode: str, last: float, count: int) -> Tensor:
    """Return ``count`` places between 0 and ``last``, in float64.

    Args:
        mode: One of ``MODES``.
        last: The place of the last element of the input; below zero, the places go down to it.
        count: Size of the result.

    Raises:
        ExecutionError: There is no such mode.
    """
    if last < 0:
        return -grid_points(mode, -last, count)
    steps = torch.arange(count, dtype=torch.float64)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and count > 1):
        places = steps * (last / max(1, count - 1))
    elif mode == "ALIGN_CORNERS":
        places = steps + last / 2
    elif mode == "DEFAULT":
        places = steps * ((last + 1) / count)
    elif mode == "OFFSET_CORNERS":
        places = (steps + 0.5) * (max(1.0, last) / count)
    elif mode == "UNALIGN_CORNERS":
        places = (steps + 0.5) * ((last + 1) / count) - 0.5
    else:
        raise ExecutionError(f"there is no sampling mode {mode!r}, but {', '.join(MODES)}")
    return places.clamp(0.0, last)


def nearest(mode: str, size: int, count: int) -> Tensor:
    """Return which of ``size`` elements each of ``count`` ones repeats.

    With ``DEFAULT`` it is the element that holds the middle of the new one, as TensorFlow's
    ``half_pixel_centers``: coremltools lowers that to this mode, and tests it on devices. The other
    modes, for which nothing is documented, take the element nearest to their grid point, the later one
    of two.
    """
    if mode in ("DEFAULT", "UNALIGN_CORNERS"):
        return (torch.arange(count) * 2 + 1) * size // (2 * count)
    return (grid_points(mode, size - 1, count) + 0.5).floor().long()


def linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Return the values of ``x`` at places along an axis, linear between two elements."""
    size = x.shape[axis]
    low = places.floor().clamp(0, size - 1)
    share = (places - low).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    first = low.long()
    second = (first + 1).clamp(max=size - 1)
    return torch.lerp(x.index_select(axis, first), x.index_select(axis, second), share)
