"""Nodes of float layers as kernels and the constants that these take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

from qcompile.targets.tvm import float_ops as ops
from qcompile.targets.tvm.kernels import float_conv, float_depthwise, weights
from qcompile.targets.tvm.kernels.shapes import Window, round_up
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors
from qcompile.targets.tvm.kernels.weights import Coding

Constants = Callable[[Any], Tensor]


@dataclass(frozen=True)
class FloatLayer:
    """A convolution or a linear layer.

    Args:
        window: Its geometry; of a linear layer, one pixel.
        is_linear: Whether its rows are not known.
        is_depthwise: Whether each channel has a kernel of its own.
        coding: Of the weights.
        limits: Of the results.
        weight: ``[out, in / groups, height, width]``.
        scale: ``[out]`` or ``[out, groups]``, for codes.
        bias: ``[out]``.
    """

    window: Window
    is_linear: bool
    is_depthwise: bool
    coding: Coding
    limits: Limits
    weight: NDArray[Any]
    scale: NDArray[Any] | None
    bias: NDArray[Any]

    @staticmethod
    def of(node: fx.Node, constants: Constants) -> FloatLayer:
        """Return the layer of a ``float_conv2d`` or ``float_linear``.

        Args:
            node: The call.
            constants: Returns the tensor of a constant's node.
        """
        args: list[Any] = list(node.args)
        x, weight, scale, bias, *rest = args
        *geometry, bits, low, high = rest
        kernel = constants(weight).numpy()
        is_linear = node.target == ops.LINEAR
        scales = None if scale is None else constants(scale).numpy()
        features = len(kernel)
        offset = np.zeros(features, np.float32) if bias is None else constants(bias).numpy()
        kernel = kernel[:, :, None, None] if is_linear else kernel
        stride, padding, groups = geometry if geometry else ((1, 1), (0, 0), 1)
        image, channels = ((1, 1), kernel.shape[1]) if is_linear else _image(x)
        window = Window(
            image, channels, features, kernel.shape[2:], tuple(stride), tuple(padding)
        )  # fmt: skip
        coding = Coding(bits, 1 if scales is None or scales.ndim == 1 else scales.shape[1])
        limits = Limits(low, high)
        return FloatLayer(window, is_linear, groups != 1, coding, limits, kernel, scales, offset)

    def kernel(self, vectors: Vectors) -> Any:
        """Return the TIR function."""
        rest = vectors, self.coding, self.limits
        if self.is_linear:
            return float_conv.linear(self.window.channels, self.window.features, *rest)
        build = float_depthwise.depthwise if self.is_depthwise else float_conv.conv
        return build(self.window, *rest)

    def constants(self, vectors: Vectors) -> list[NDArray[Any]]:
        """Return weights, scales if there are any, and bias as the kernel reads them."""
        scales = [] if self.scale is None else [self.scale]
        if self.is_depthwise:
            packed = weights.pack_depthwise(self.weight, self.coding)
            return [packed, *(s.reshape(-1) for s in scales), self.bias]
        lanes = vectors.lanes
        bias = np.zeros(round_up(len(self.bias), lanes), np.float32)
        bias[: len(self.bias)] = self.bias
        packed = weights.pack(self.weight, self.coding, lanes)
        return [packed, *(weights.pack_scales(s, lanes) for s in scales), bias]

    def unpacked(self, packed: NDArray[Any]) -> NDArray[Any]:
        """Return the weights from the first of ``constants``."""
        undo = weights.unpack_depthwise if self.is_depthwise else weights.unpack
        return undo(packed, self.weight.shape, self.coding)


def _image(x: fx.Node) -> tuple[tuple[int, int], int]:
    """Return the size of ``[batch, height, width, channels]``, and its channels."""
    height, width, channels = (int(size) for size in x.meta["val"].shape[1:])
    return (height, width), channels
