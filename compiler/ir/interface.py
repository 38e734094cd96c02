"""What a model file says about its inputs and outputs beyond shapes: images, labels, who made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImageInput:
    """An input that an app gives as a picture: ``value = scale * pixel + bias``, pixels 0 to 255.

    Args:
        scale: One number for all channels.
        bias: One number a channel.
        color: ``RGB``, ``BGR`` or ``GRAYSCALE``.
    """

    scale: float
    bias: tuple[float, ...]
    color: str = "RGB"


@dataclass(frozen=True)
class Interface:
    """What is written into an artifact for those who use it.

    Args:
        images: Inputs given as pictures, by name.
        shapes: Input name -> the shapes it may have, where only some are possible.
        labels: Names of the classes, for a classifier.
        metadata: ``author``, ``licence``, ``version``, ``description``.
    """

    images: Mapping[str, ImageInput] = field(default_factory=dict)
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
