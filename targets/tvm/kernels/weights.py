"""Weights as float kernels read them: float32, or codes that are decoded in the register.

Two 4-bit codes share a byte: the first of a pair is in its low half. They belong to two neighbouring inputs
of one feature, so that the features of a register stay in their lanes while they are decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.targets.tvm.kernels.parts import spread
from qcompile.targets.tvm.kernels.shapes import round_up
from qcompile.targets.tvm.kernels.vectors import Vectors, typed
from qcompile.targets.tvm.tools import tir

Expr = Any


@dataclass(frozen=True)
class Coding:
    """How weights are stored.

    Args:
        bits: 32 for float32; 8 or 4 of a code.
        groups: How many scales the input channels of a feature have.
    """

    bits: int = 32
    groups: int = 1

    @property
    def dtype(self) -> str:
        """Of the stored array."""
        return "float32" if self.bits == 32 else "int8"

    @property
    def pair(self) -> int:
        """Weights of one lane that are read together."""
        return 2 if self.bits == 4 else 1

    @property
    def is_scaled(self) -> bool:
        """Whether there are scales."""
        return self.bits < 32

    def cost(self, vectors: Vectors) -> float:
        """Return about how many instructions one register of weights takes."""
        load = {32: 1.0, 8: vectors.widening, 4: vectors.widening + 0.5}[self.bits]
        return load + (self.groups > 1)

    def decode(self, stored: Expr, vectors: Vectors, lanes: int) -> list[Expr]:
        """Return ``pair`` registers of float32.

        Args:
            stored: As many numbers as lanes.
            vectors: For whom.
            lanes: At most ``vectors.lanes``.
        """
        t = tir()
        if self.bits == 32:
            return [stored]
        codes, floats = t.cast(stored, typed("int32", lanes)), typed("float32", lanes)
        if self.bits == 8:
            return [t.cast(codes, floats)]
        high = t.shift_right(codes, spread(t.int32(4), lanes))
        if vectors.looks_up and lanes == vectors.lanes:
            return [_looked_up(codes, lanes), _looked_up(high, lanes)]
        return [t.cast(_signed(codes, lanes), floats), t.cast(high, floats)]


def _signed(codes: Expr, lanes: int) -> Expr:
    """Return the low four bits of each int32 with their sign."""
    t = tir()
    bits = spread(t.int32(28), lanes)
    return t.shift_right(t.shift_left(codes, bits), bits)


def _looked_up(codes: Expr, lanes: int) -> Expr:
    """Return the low four bits of each int32 as float, from a table in a register: one VPERMPS."""
    t = tir()
    table = t.cast(_signed(t.ramp(0, 1, lanes), lanes), typed("float32", lanes))
    name = t.llvm_lookup_intrinsic_id("llvm.x86.avx512.permvar.sf.512")
    return t.call_llvm_pure_intrin(typed("float32", lanes), name, table, codes)


def pack(weight: NDArray[Any], coding: Coding, lanes: int) -> NDArray[Any]:
    """Return a convolution's weights as the kernel reads them.

    Args:
        weight: ``[out, in, height, width]``, float32 or codes.
        coding: How they are stored.
        lanes: Features in a register.

    Returns:
        ``[out / lanes, height, segments, steps, lanes]``, zeros where the sizes do not divide. A segment is
        the weights of a row that share a scale: all of the row, or one group of one column.
    """
    out, channels, height, width = weight.shape
    rows = np.zeros((round_up(out, lanes), height, width * channels), weight.dtype)
    rows[:out] = weight.transpose(0, 2, 3, 1).reshape(out, height, -1)
    segments = segments_of(width, coding)
    cut = rows.reshape(-1, lanes, height, segments, width * channels // segments)
    return paired(np.ascontiguousarray(cut.transpose(0, 2, 3, 4, 1)), coding)


def unpack(stored: NDArray[Any], shape: tuple[int, ...], coding: Coding) -> NDArray[Any]:
    """Return ``[out, in, height, width]`` from what ``pack`` returned."""
    out, channels, height, width = shape
    length = width * channels // segments_of(width, coding)
    cut = unpaired(stored, coding, length)
    rows = cut.transpose(0, 4, 1, 2, 3).reshape(-1, height, width, channels)[:out]
    return np.ascontiguousarray(rows.transpose(0, 3, 1, 2))


def packed_bytes(shape: tuple[int, ...], coding: Coding, lanes: int | None) -> int:
    """Return the bytes of what ``pack`` and ``pack_scales`` return, or ``pack_depthwise`` and its scales.

    Args:
        shape: ``[out, in / groups, height, width]``.
        coding: How weights are stored.
        lanes: Features in a register; ``None`` of a depthwise convolution.
    """
    out, channels, height, width = shape
    itemsize = 4 if coding.bits == 32 else 1
    scales = 4 * coding.groups if coding.is_scaled else 0
    if lanes is None:
        return out * (-(-height * width // coding.pair) * itemsize + scales)
    segments = segments_of(width, coding)
    steps = -(-(width * channels // segments) // coding.pair)
    return round_up(out, lanes) * (height * segments * steps * itemsize + scales)


def segments_of(width: int, coding: Coding) -> int:
    """Return how many segments a row of a kernel has."""
    return width * coding.groups if coding.groups > 1 else 1


def pack_depthwise(weight: NDArray[Any], coding: Coding) -> NDArray[Any]:
    """Return ``[channels, 1, height, width]`` as ``[positions, channels]``, of 4 bits two a byte."""
    return paired(np.ascontiguousarray(weight.reshape(len(weight), -1).T), coding)


def unpack_depthwise(stored: NDArray[Any], shape: tuple[int, ...], coding: Coding) -> NDArray[Any]:
    """Return ``[channels, 1, height, width]`` from what ``pack_depthwise`` returned."""
    positions = shape[2] * shape[3]
    return np.ascontiguousarray(unpaired(stored, coding, positions).T).reshape(shape)


def paired(codes: NDArray[Any], coding: Coding) -> NDArray[Any]:
    """Return codes with two neighbours of the axis before the last in a byte, if they have 4 bits."""
    if coding.pair == 1:
        return codes
    odd = codes.shape[-2] % 2
    even = np.pad(codes, [*[(0, 0)] * (codes.ndim - 2), (0, odd), (0, 0)]).view(np.uint8)
    return ((even[..., ::2, :] & 15) | (even[..., 1::2, :] << 4)).view(np.int8)


def unpaired(stored: NDArray[Any], coding: Coding, length: int) -> NDArray[Any]:
    """Return so many codes of the axis before the last, a byte each."""
    if coding.pair == 1:
        return stored
    halves = np.stack([(stored << 4).astype(np.int8) >> 4, stored >> 4], axis=-2)
    found = halves.reshape(*stored.shape[:-2], -1, stored.shape[-1])
    return np.ascontiguousarray(found[..., :length, :])


def pack_scales(scale: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Return ``[out]`` or ``[out, groups]`` as ``[out / lanes, groups, lanes]``, zeros at the end."""
    out = len(scale)
    whole = np.zeros((round_up(out, lanes), scale.size // out), np.float32)
    whole[:out] = scale.reshape(out, -1)
    return np.ascontiguousarray(whole.reshape(-1, lanes, whole.shape[1]).transpose(0, 2, 1))
