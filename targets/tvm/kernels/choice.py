"""Which kernels a program calls: those for a CPU's instructions, or those for NVIDIA GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qcompile.targets.tvm.kernels import conv, cuda, cuda_conv, depthwise, elementwise, pool
from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window

Pair = tuple[float, float]
Size = tuple[int, int, int]


class Kernels(Protocol):
    """TIR functions on 8-bit codes, channels last; see ``kernels/elementwise``, ``conv``, ``pool``."""

    @property
    def signed(self) -> bool:
        """Whether activations are int8; uint8 otherwise."""

    @property
    def weight_bits(self) -> int:
        """With which no sum of products overflows."""

    def layer(self, window: Window, is_depthwise: bool, zero_point: int, codes: Codes) -> Any:
        """Return ``(x, weights, sums, multiplier, offset, y)``."""

    def constants(
        self, weight: NDArray[np.int8], is_depthwise: bool, numbers: Sequence[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return a layer's weights, and its numbers by feature, as ``layer`` reads them."""

    def add(
        self,
        shape: Sequence[int],
        dtypes: tuple[str, str],
        scales: Pair,
        offset: float,
        codes: Codes,
    ) -> Any:
        """Return ``(a, b, y)``."""

    def table(self, shape: Sequence[int], dtype: str, result: str) -> Any:
        """Return ``(x, table, y)``."""

    def quantize_channels_last(
        self, shape: Sequence[int], scale: float, zero_point: int, codes: Codes
    ) -> Any:
        """Return ``(x, y)``."""

    def global_average(self, size: Size, multiplier: float, offset: float, codes: Codes) -> Any:
        """Return ``(x, y)``."""

    def maximum(self, window: Window, codes: Codes) -> Any:
        """Return ``(x, y)``."""


@dataclass(frozen=True)
class CpuKernels:
    """Kernels for a CPU.

    Args:
        instructions: Of the CPU.
    """

    instructions: Instructions

    @property
    def signed(self) -> bool:
        """Whether activations are int8; uint8 otherwise."""
        return self.instructions.signed

    @property
    def weight_bits(self) -> int:
        """With which no sum of products overflows."""
        return self.instructions.weight_bits

    def layer(self, window: Window, is_depthwise: bool, zero_point: int, codes: Codes) -> Any:
        """Return ``(x, weights, sums, multiplier, offset, y)``."""
        build = depthwise.depthwise if is_depthwise else conv.conv
        return build(window, self.instructions, zero_point, codes)

    def constants(
        self, weight: NDArray[np.int8], is_depthwise: bool, numbers: Sequence[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return a layer's weights, and its numbers by feature up to whole registers."""
        if is_depthwise:
            return [depthwise.pack(weight), *numbers]
        padded = [conv.pad_features(v, self.instructions) for v in numbers]
        return [conv.pack(weight, self.instructions), *padded]

    add = staticmethod(elementwise.add)
    table = staticmethod(elementwise.table)
    quantize_channels_last = staticmethod(elementwise.quantize_channels_last)

    def global_average(self, size: Size, multiplier: float, offset: float, codes: Codes) -> Any:
        """Return ``(x, y)``."""
        return pool.global_average(size, self.instructions, multiplier, offset, codes)

    def maximum(self, window: Window, codes: Codes) -> Any:
        """Return ``(x, y)``."""
        return pool.maximum(window, self.instructions, codes)


@dataclass(frozen=True)
class CudaKernels:
    """Kernels for NVIDIA GPUs.

    Args:
        grid: Of threads.
    """

    grid: cuda.Grid

    signed = True
    weight_bits = 8

    def layer(self, window: Window, is_depthwise: bool, zero_point: int, codes: Codes) -> Any:
        """Return ``(x, weights, sums, multiplier, offset, y)``."""
        build = cuda_conv.depthwise if is_depthwise else cuda_conv.conv
        return build(self.grid, window, zero_point, codes)

    def constants(
        self, weight: NDArray[np.int8], is_depthwise: bool, numbers: Sequence[NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Return a layer's weights, and its numbers by feature as they are."""
        pack = depthwise.pack if is_depthwise else cuda_conv.pack
        return [pack(weight), *numbers]

    def add(
        self,
        shape: Sequence[int],
        dtypes: tuple[str, str],
        scales: Pair,
        offset: float,
        codes: Codes,
    ) -> Any:
        """Return ``(a, b, y)``."""
        return cuda.add(self.grid, shape, dtypes, scales, offset, codes)

    def table(self, shape: Sequence[int], dtype: str, result: str) -> Any:
        """Return ``(x, table, y)``."""
        return cuda.table(self.grid, shape, dtype, result)

    def quantize_channels_last(
        self, shape: Sequence[int], scale: float, zero_point: int, codes: Codes
    ) -> Any:
        """Return ``(x, y)``."""
        return cuda.quantize_channels_last(self.grid, shape, scale, zero_point, codes)

    def global_average(self, size: Size, multiplier: float, offset: float, codes: Codes) -> Any:
        """Return ``(x, y)``."""
        return cuda.global_average(self.grid, size, multiplier, offset, codes)

    def maximum(self, window: Window, codes: Codes) -> Any:
        """Return ``(x, y)``."""
        return cuda.maximum(self.grid, window, codes)
