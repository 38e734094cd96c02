"""Sizes of a convolution over images whose channels lie together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A convolution's geometry.

    Args:
        image: Height and width of the input.
        channels: Of the input.
        features: Of the output.
        kernel: Height and width.
        stride: Of both axes.
        padding: Above and below; left and right.
    """

    image: tuple[int, int]
    channels: int
    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    @property
    def output(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (size + 2 * pad - k) // step + 1
            for size, pad, k, step in zip(
                self.image, self.padding, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether each output pixel reads the input pixel at its place and no other."""
        return self.kernel == self.stride == (1, 1) and self.padding == (0, 0)

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of the input with its border."""
        height, width = (s + 2 * p for s, p in zip(self.image, self.padding, strict=True))
        return height, width


def round_up(number: int, step: int) -> int:
    """Return the smallest multiple of ``step`` that is not below ``number``."""
    return -(-number // step) * step
