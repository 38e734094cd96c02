"""The op ``pad``. Source: coremltools' op definitions, tensor_operation.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.registry import op


@op("pad")
def pad(
    x: Tensor, pad: Tensor, mode: str = "constant", constant_val: Tensor | float = 0.0
) -> Tensor:
    """Pad the last dimensions: before and after the first of them, then the next.

    ``reflect`` mirrors the data without its edge, and takes at most ``size - 1`` elements a side;
    ``replicate`` repeats the edge, at most ``size`` times.

    Raises:
        ExecutionError: There are too many paddings for the rank, a negative one, or too large a one.
    """
    pairs = _pairs(x, pad)
    first = x.ndim - len(pairs)
    sizes = [n + sum(pair) for n, pair in zip(x.shape[first:], pairs, strict=True)]
    bounded([*x.shape[:first], *sizes], x.dtype)
    if mode == "constant":
        value = float(constant_val) if x.is_floating_point() else int(constant_val)
        return F.pad(x, [side for pair in reversed(pairs) for side in pair], value=value)
    for axis, pair in enumerate(pairs, first):
        if any(pair):
            x = x.index_select(axis, _sources(x.shape[axis], pair, mode))
    return x


def _pairs(x: Tensor, pad: Tensor) -> list[tuple[int, int]]:
    flat = [int(v) for v in pad.tolist()]
    if len(flat) % 2 or len(flat) > 2 * x.ndim or min(flat, default=0) < 0:
        raise ExecutionError(f"the padding {flat} does not fit a value of {x.ndim} dimensions")
    return list(zip(flat[::2], flat[1::2], strict=True))


def _sources(size: int, pair: tuple[int, int], mode: str) -> Tensor:
    """Return which element each one of the padded axis repeats."""
    limits = {"reflect": size - 1, "replicate": size}
    if mode not in limits:
        raise ExecutionError(f"there is no padding mode {mode!r}")
    if max(pair) > limits[mode]:
        raise ExecutionError(f"{mode} pads {size} elements by at most {limits[mode]}, not {pair}")
    index = torch.arange(-pair[0], size + pair[1])
    if mode == "replicate":
        return index.clamp(0, size - 1)
    return size - 1 - (size - 1 - index.abs()).abs()
