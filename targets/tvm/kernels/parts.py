"""What all integer kernels are put together from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qcompile.targets.tvm.tools import tir

Expr = Any
Buffer = Any


@dataclass(frozen=True)
class Codes:
    """The format of what a kernel stores.

    Args:
        dtype: ``uint8`` or ``int8``; ``float32`` for values instead of codes.
        low: The least code.
        high: The greatest.
    """

    dtype: str
    low: int = 0
    high: int = 0


def ramp(start: Expr, lanes: int) -> Expr:
    """Return the indices of so many neighbours."""
    return tir().ramp(start, 1, lanes) if lanes > 1 else start


def spread(value: Expr, lanes: int) -> Expr:
    """Return a value once for each lane."""
    return tir().broadcast(value, lanes) if lanes > 1 else value


def requantize(sums: Expr, multiplier: Expr, offset: Expr, codes: Codes, lanes: int) -> Expr:
    """Return ``round(sums * multiplier + offset)`` in the format; halves go to the even neighbour.

    Args:
        sums: int32 or float32 of so many lanes.
        multiplier: float32.
        offset: float32, the zero point included.
        codes: The format.
        lanes: Of all three.
    """
    t = tir()
    values = t.cast(sums, _vector("float32", lanes)) * multiplier + offset
    if codes.dtype == "float32":
        return values
    low, high = (spread(t.float32(limit), lanes) for limit in (codes.low, codes.high))
    limited = t.max(t.min(t.nearbyint(values), high), low)
    return t.cast(t.cast(limited, _vector("int32", lanes)), _vector(codes.dtype, lanes))


def _vector(dtype: str, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes > 1 else dtype


def widen(value: Expr, lanes: int) -> Expr:
    """Return codes as int32."""
    return tir().cast(value, _vector("int32", lanes))


def flat(image: Buffer) -> Buffer:
    """Return the same codes as one row, for whatever is contiguous across axes."""
    t = tir()
    count = 1
    for size in image.shape:
        count = count * size
    return t.decl_buffer((count,), image.dtype, data=image.data)


def padded_copy(
    image: Buffer,
    batch: Expr,
    size: tuple[int, int, int],
    pad: tuple[int, int],
    fill: float,
    tail: int,
) -> Buffer:
    """Copy an image into a flat buffer with a border; return the buffer.

    Args:
        image: ``[batch, height, width, channels]``, codes or float32.
        batch: Which one.
        size: Height, width, channels.
        pad: Rows above and below; pixels left and right.
        fill: The border's code or value: what 0 is, or the least.
        tail: Codes after the end that a kernel may read.
    """
    t = tir()
    height, width, channels = size
    run, side = width * channels, pad[1] * channels
    row = run + 2 * side
    total = (height + 2 * pad[0]) * row + tail
    border, source = t.alloc_buffer((total,), image.dtype), flat(image)

    is_float = image.dtype == "float32"
    value = t.float32(fill) if is_float else t.cast(t.int32(fill), image.dtype)

    def set_to_fill(start: Expr, count: int) -> None:
        if count:
            with t.serial(count) as i:
                t.buffer_store(border, value, [start + i])

    first = pad[0] * row
    set_to_fill(0, first)
    with t.serial(height) as h:
        set_to_fill(first + h * row, side)
        with t.serial(run) as i:
            code = source[(batch * height + h) * run + i]
            t.buffer_store(border, code, [first + h * row + side + i])
        set_to_fill(first + h * row + side + run, side)
    set_to_fill(first + height * row, first + tail)
    return border


def store_features(
    out: Buffer, start: Expr, found: Expr, channel: Expr, features: int, lanes: int
) -> None:
    """Store a register of features, but none that there is not.

    Args:
        out: Flat.
        start: Where.
        found: The register.
        channel: The first feature in it.
        features: Of the layer.
        lanes: Of the register.
    """
    t = tir()
    if features % lanes == 0:
        t.buffer_store(out, found, [ramp(start, lanes)])
        return
    spill = t.alloc_buffer((lanes,), out.dtype)
    t.buffer_store(spill, found, [ramp(0, lanes)])
    with t.If(channel + lanes <= features):
        with t.Then():
            t.buffer_store(out, spill[ramp(0, lanes)], [ramp(start, lanes)])
        with t.Else():
            done = 0
            for width in powers(features % lanes):
                t.buffer_store(out, spill[ramp(done, width)], [ramp(start + done, width)])
                done += width


def powers(number: int) -> list[int]:
    """Return the powers of two that sum to a number, the largest first."""
    return [1 << bit for bit in reversed(range(number.bit_length())) if number >> bit & 1]


Argument = tuple[Sequence[Any], str]
"""Shape and dtype of a function's argument; the size ``BATCH`` is one number for the whole function."""
BATCH = None
OURS = {"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": 8}
"""What TVM is told of a kernel: no two arguments overlap, it has its schedule, nothing is joined to it."""


@contextmanager
def function(arguments: Mapping[str, Argument]) -> Iterator[Function]:
    """Build a TIR function; its body is what is made inside of the block."""
    from tvm.script.ir_builder import IRBuilder

    t = tir()
    found = Function()
    with IRBuilder() as builder, t.prim_func(s_tir=True):
        t.func_attr(OURS)
        handles = [t.arg(name, t.handle()) for name in arguments]
        found.batch = t.int64()
        for handle, (shape, dtype) in zip(handles, arguments.values(), strict=True):
            sizes = tuple(found.batch if s is BATCH else s for s in shape)
            found.buffers.append(t.match_buffer(handle, sizes, dtype))
        with t.sblock("root"):
            t.reads()
            t.writes()
            yield found
    found.result = builder.get()


class Function:
    """A TIR function that is being built."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.batch: Expr = None
        self.result: Any = None


def each_vector(
    batch: Expr, shape: Sequence[int], lanes: int, body: Callable[[list[Expr], int], None]
) -> None:
    """Loop over all values of ``[batch, *shape]``, neighbours in the last axis together.

    Args:
        batch: Size of the first axis.
        shape: The others; at least one.
        lanes: At most so many at a time: a number that divides the last size is taken.
        body: Given the indices, the last a vector's, and how many lanes it has.
    """
    t = tir()
    width = math.gcd(shape[-1], lanes)
    with t.grid(batch, *shape[:-1], shape[-1] // width) as indices:
        *outer, last = indices
        body([*outer, ramp(last * width, width)], width)


@dataclass(frozen=True)
class Accumulators:
    """Registers of int32 or float32.

    Args:
        buffers: One a register. TVM puts on the stack, whence LLVM takes them to registers, what is of global
            scope and below 1 KiB.
        lanes: Of each.
    """

    buffers: Sequence[Buffer]
    lanes: int

    @staticmethod
    def make(count: int, lanes: int, dtype: str = "int32") -> Accumulators:
        """Return new ones."""
        buffers = [tir().alloc_buffer((lanes,), dtype) for _ in range(count)]
        return Accumulators(buffers, lanes)

    def get(self, index: int) -> Expr:
        """Return one vector."""
        return self.buffers[index][ramp(0, self.lanes)]

    def set(self, index: int, value: Expr) -> None:
        """Store one vector."""
        tir().buffer_store(self.buffers[index], value, [ramp(0, self.lanes)])
