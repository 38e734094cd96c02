"""The words of quantization: ``QuantSpec`` (a number format) and ``QuantParams`` (its scale).

Formulas: real = scale * (code - zero_point), rounding half to even, saturating; ONNX
``QuantizeLinear`` and torch's ``quantized_decomposed`` ops are the same (FORMATS B.0). With
``scale_bits=16`` scales are float16 numbers, and real is rounded once to float16: bit for bit what
Core ML decodes in a float16 program.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor

from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.storage import half_scale, to_half

SMALLEST_SCALE = 2.0**-100
"""A tensor of zeros has this scale: far above float32's subnormals, far below any real scale."""


class Granularity(StrEnum):
    """What shares one scale."""

    PER_TENSOR = "per_tensor"
    PER_CHANNEL = "per_channel"
    PER_GROUP = "per_group"


@dataclass(frozen=True)
class FloatSpec:
    """A weight or activation that stays floating point.

    Args:
        bits: 16 or 32.
    """

    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (16, 32):
            raise ValueError(f"FloatSpec has 16 or 32 bits, not {self.bits}")

    def __str__(self) -> str:
        return f"fp{self.bits}"

    def storage_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of this shape."""
        return _count(shape) * self.bits // 8


@dataclass(frozen=True)
class QuantParams:
    """Scale and zero point of one tensor, shaped to broadcast against it but for groups.

    Args:
        scale: float32, positive; ``[]`` per tensor, ``[1, C, 1, ...]`` per channel. Per group it has
            the tensor's shape but for the axis, which counts groups: ``[out, groups]`` of ``[out, in]``.
            A group along axis 0 or 1 covers all kernel positions: ``[out, groups, 1, 1]`` of
            ``[out, in, kh, kw]``.
        zero_point: int64, the same shape.
    """

    scale: Tensor
    zero_point: Tensor


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """One integer format for one tensor.

    Args:
        bits: Width of a code, 2 to 8, or 16; codes lie in the smallest torch integer that holds them.
        signed: Codes run from -(2**(bits-1)), else from 0.
        symmetric: The zero point is 0, and the lowest signed code is not used (-127..127 for int8).
        granularity: What shares a scale.
        axis: The channel axis for ``per_channel``; the axis cut into groups for ``per_group``.
        group_size: Elements along ``axis`` that share a scale, for ``per_group`` only; the last group
            may be shorter.
        full_range: Symmetric codes use the lowest one too: -8..7 for int4.
        scale_bits: 32, or 16 for scales that are float16 numbers and decoded values rounded to float16.
    """

    bits: int = 8
    signed: bool = True
    symmetric: bool = True
    granularity: Granularity = Granularity.PER_TENSOR
    axis: int | None = None
    group_size: int | None = None
    full_range: bool = False
    scale_bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4, 5, 6, 7, 8, 16):
            raise ValueError(
                f"QuantSpec has 2 to 8 or 16 bits, not {self.bits}: "
                "give one of these, or use FloatSpec for floating point"
            )
        if self.symmetric and not self.signed:
            raise ValueError("symmetric codes are signed: use signed=True, or symmetric=False")
        if self.full_range and not self.symmetric:
            raise ValueError("asymmetric codes use their full range: leave full_range=False")
        if self.scale_bits not in (16, 32):
            raise ValueError(f"scales have 16 or 32 bits, not {self.scale_bits}")
        if (self.axis is None) != (self.granularity is Granularity.PER_TENSOR):
            raise ValueError(
                f"axis={self.axis} does not fit granularity={self.granularity}: "
                "give axis with per_channel and per_group, and only then"
            )
        if (self.group_size is not None) != (self.granularity is Granularity.PER_GROUP):
            raise ValueError(
                f"group_size={self.group_size} does not fit granularity={self.granularity}: "
                "give group_size with per_group, and only then"
            )
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size={self.group_size} holds no element: give 1 or more")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        if not self.signed:
            return 0
        return int(self.symmetric and not self.full_range) - (1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype that holds a code."""
        if self.bits > 8:
            return torch.int16 if self.signed else torch.uint16
        return torch.int8 if self.signed else torch.uint8

    @property
    def is_blockwise(self) -> bool:
        """Whether ``qcompile::dequantize_blockwise`` decodes it: groups, or float16 scales."""
        return self.group_size is not None or self.scale_bits == 16

    def __str__(self) -> str:
        kind = f"{'int' if self.signed else 'uint'}{self.bits}"
        shape = "" if self.axis is None else f"({self.axis})"
        if self.group_size is not None:
            shape = f"({self.axis},{self.group_size})"
        zero = "full" if self.full_range else "sym" if self.symmetric else "asym"
        scale = " fp16-scale" if self.scale_bits == 16 else ""
        return f"{kind} {zero} {self.granularity}{shape}{scale}"

    @classmethod
    def parse(cls, text: str) -> QuantSpec:
        """Read what ``str`` wrote, such as ``int8 sym per_channel(0)``.

        Raises:
            ValueError: The text is no spec.
        """
        pattern = (
            r"(u?)int(\d+) (sym|asym|full) (per_\w+?)(?:\((-?\d+)(?:,(\d+))?\))?( fp16-scale)?"
        )
        if not (match := re.fullmatch(pattern, text)):
            raise ValueError(f"{text!r} is no QuantSpec, such as 'int8 sym per_channel(0)'")
        unsigned, bits, zero, granularity, axis, group, half = match.groups()
        return cls(
            bits=int(bits),
            signed=not unsigned,
            symmetric=zero != "asym",
            granularity=Granularity(granularity),
            axis=None if axis is None else int(axis),
            group_size=None if group is None else int(group),
            full_range=zero == "full",
            scale_bits=16 if half else 32,
        )

    def params(self, low: Tensor, high: Tensor) -> QuantParams:
        """Return the scale and zero point that cover ``low`` to ``high``; 0 is always exact.

        Args:
            low: Smallest value(s), in the shape of the scale (``QuantParams``).
            high: Largest value(s), the same shape.

        Source:
            FORMATS B.0; Jacob et al. 2018, section 2.1 (https://arxiv.org/abs/1712.05877).
        """
        low, high = low.double().clamp(max=0), high.double().clamp(min=0)
        if self.symmetric:
            scale = self.storable(torch.maximum(low / self.qmin, high / self.qmax))
            return QuantParams(scale, torch.zeros_like(scale, dtype=torch.int64))
        scale = self.storable((high - low) / (self.qmax - self.qmin))
        zero_point = (self.qmin - low / scale.double()).round().clamp(self.qmin, self.qmax)
        return QuantParams(scale, zero_point.to(torch.int64))

    def storable(self, scale: Tensor) -> Tensor:
        """Return the scales of this format that come next: not below, and positive; float32."""
        if self.scale_bits == 16:
            return half_scale(scale)
        return scale.clamp(min=SMALLEST_SCALE).float()

    def min_max(self, x: Tensor) -> QuantParams:
        """Return the parameters that cover all of ``x``."""
        if self.granularity is Granularity.PER_TENSOR:
            return self.params(x.amin(), x.amax())
        axis = self._axis(x)
        if self.group_size is None:
            dims = [d for d in range(x.dim()) if d != axis]
            return self.params(x.amin(dims, keepdim=True), x.amax(dims, keepdim=True))
        missing = -x.shape[axis] % self.group_size
        end = [0, 0] * (x.dim() - 1 - axis) + [0, missing]
        padded = torch.nn.functional.pad(x, end)  # with 0, which every range covers
        groups = padded.unflatten(axis, (-1, self.group_size))
        low, high = groups.amin(axis + 1), groups.amax(axis + 1)
        if axis < 2 < x.dim():
            positions = list(range(2, x.dim()))
            low, high = low.amin(positions, keepdim=True), high.amax(positions, keepdim=True)
        return self.params(low, high)

    def encode(self, x: Tensor, params: QuantParams) -> Tensor:
        """Return the codes of ``x``: same shape, ``self.dtype``."""
        params = self.expanded(params, x)
        codes = torch.round(x * (1.0 / params.scale)) + params.zero_point
        return codes.clamp(self.qmin, self.qmax).to(self.dtype)

    def decode(self, codes: Tensor, params: QuantParams) -> Tensor:
        """Return the real values of codes, float32; with ``scale_bits=16`` rounded to float16."""
        params = self.expanded(params, codes)
        return self.rounded((codes.float() - params.zero_point) * params.scale)

    def fake_quantize(self, x: Tensor, params: QuantParams) -> Tensor:
        """Return ``decode(encode(x))`` without the integers between."""
        params = self.expanded(params, x)
        codes = torch.round(x * (1.0 / params.scale)) + params.zero_point
        codes = codes.clamp_(self.qmin, self.qmax) - params.zero_point
        return self.rounded(codes * params.scale)

    def rounded(self, values: Tensor) -> Tensor:
        """Return decoded values as they are held: rounded to float16 with ``scale_bits=16``."""
        return to_half(values) if self.scale_bits == 16 else values

    def scale_count(self, shape: tuple[int, ...]) -> int:
        """Return how many scales a tensor of this shape has."""
        if self.axis is None:
            return 1
        axis = range(len(shape))[self.axis]
        if self.group_size is None:
            return shape[axis]
        alone = shape[:2] if axis < 2 else shape
        return _count(alone) // shape[axis] * -(-shape[axis] // self.group_size)

    def storage_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of codes, scales and, if asymmetric, zero points."""
        container = self.bits if self.bits in (2, 4) else 16 if self.bits > 8 else 8
        scales = self.scale_count(shape)
        zero_points = 0 if self.symmetric else -(-scales * container // 8)
        return -(-_count(shape) * container // 8) + scales * self.scale_bits // 8 + zero_points

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return ``storage_bytes`` in bits for each element."""
        return 8 * self.storage_bytes(shape) / max(1, _count(shape))

    def _axis(self, x: Tensor) -> int:
        assert self.axis is not None
        return range(x.dim())[self.axis]

    def expanded(self, params: QuantParams, x: Tensor) -> QuantParams:
        """Return parameters that broadcast against ``x``: a group's are repeated for its elements."""
        if self.group_size is None:
            return params
        axis, size = self._axis(x), self.group_size

        def repeat(value: Tensor) -> Tensor:
            return value.repeat_interleave(size, axis).narrow(axis, 0, x.shape[axis])

        return QuantParams(repeat(params.scale), repeat(params.zero_point))


WeightSpec = QuantSpec | PaletteSpec


@dataclass(frozen=True)
class WeightFormat:
    """A format of a weight by the name that users know.

    Args:
        name: Such as ``palette-4``.
        spec: What it is.
    """

    name: str
    spec: WeightSpec | FloatSpec


def parse_weight_spec(text: str) -> WeightSpec:
    """Read ``str(spec)`` of a quantized weight."""
    return PaletteSpec.parse(text) if text.startswith("palette") else QuantSpec.parse(text)


def _count(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
