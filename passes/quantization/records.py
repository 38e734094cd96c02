"""What quantization did to each layer and each activation: rows of the report."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class LayerRecord:
    """One layer.

    Args:
        name: FQN of its weight.
        op: The op's name, ``conv2d``.
        weight: The weight's format.
        parameters: Elements of the weight.
        bytes: Of the stored weight with its scales.
        rounding: The method that was kept.
        tried: Output error of each method relative to rounding to nearest.
        bias_corrected: Whether the bias took over the mean of the error.
        weight_sqnr_db: Output power over the error that this layer's weight alone causes, held out.
        output_sqnr_db: Output power over the error of the whole quantized prefix, held out.
        note: Why something is not as usual.
        tokens: Of the calibration data, that reached an expert; ``None`` for a layer that all reach.
    """

    name: str
    op: str
    weight: str
    parameters: int
    bytes: int
    rounding: str = ""
    tried: dict[str, float] = field(default_factory=dict)
    bias_corrected: bool = False
    weight_sqnr_db: float | None = None
    output_sqnr_db: float | None = None
    note: str = ""
    tokens: int | None = None

    def add_note(self, text: str) -> None:
        """Say one thing more; nothing, or what was said, is not said."""
        if text not in self.note:
            self.note = f"{self.note}; {text}" if self.note else text


@dataclass
class ActivationRecord:
    """One quantized activation.

    Args:
        name: Of the node.
        format: ``str(QuantSpec)``.
        observer: Whose range was chosen, or why there was no choice.
        scale: Of the codes.
        zero_point: Of the codes.
        sqnr_db: Power of the value over the error of the quantized prefix and of its own codes.
    """

    name: str
    format: str
    observer: str
    scale: float
    zero_point: int
    sqnr_db: float | None


@dataclass
class FoldingRecord:
    """Factors that were moved from what makes the inputs of layers into their columns.

    Args:
        name: FQN of the weight that was divided by them: a norm's, or a layer's before.
        layers: FQNs of the weights whose columns were multiplied.
        method: The formula that was kept, or ``none``.
        error: Held-out output error of the rounded layers relative to no factors.
        tried: That of each formula.
    """

    name: str
    layers: list[str]
    method: str
    error: float
    tried: dict[str, float] = field(default_factory=dict)


@dataclass
class QuantizationLog:
    """Filled in by the passes that quantize."""

    layers: list[LayerRecord] = field(default_factory=list)
    activations: list[ActivationRecord] = field(default_factory=list)
    foldings: list[FoldingRecord] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def sqnr_db(pairs: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Return 10 log10(power / error) of (reference, value) pairs; ``None`` for a reference of zeros.

    An error of exactly 0 gives ``inf``, an infinite one ``-inf``.
    """
    power = error = 0.0
    for reference, value in pairs:
        power += float(reference.double().square().sum())
        error += float((reference.double() - value.double()).square().sum())
    if power == 0:
        return None
    if math.isinf(error):
        return -math.inf
    return math.inf if error == 0 else 10 * math.log10(power / error)
