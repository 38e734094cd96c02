"""How far predictions are from the original's: in nats where they are classes, else as relative error.

Which of the two a model has is decided from what is there. Its predictions are classes if it has one float
output ``[..., classes]`` and says so: by ``class_labels()``, by an ``evaluate()`` whose first figure is
called top-something or accuracy, or by the user, who gives ``--max-kl``. Anything else is judged by the
squared error of its outputs, over their power: detections, embeddings, images, time series.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.passes.calibration.way_back import Cotangent
from qcompile.passes.mixed_precision.cotangents import (
    relative_error,
    weighed_labels,
    weighed_outcomes,
)

Kind = Literal["kl", "error"]
_OF_CLASSES = re.compile(r"top[-_ ]?\d|acc")
_TINY = 1e-30
_SUM = 1e-3
"""By which probabilities may miss 1."""


@dataclass(frozen=True)
class Closeness:
    """A distance, measured.

    Args:
        kind: ``kl``, KL divergence in nats a prediction; ``error``, squared error over power.
        mean: Over predictions.
        error: Standard error of the mean.
        count: Of predictions.
        unit: What they are.
    """

    kind: Kind
    mean: float
    error: float
    count: int
    unit: str = "samples"


@dataclass(frozen=True)
class Predictions:
    """What a graph's outputs are.

    Args:
        kind: By what they are judged.
        probabilities: Whether a softmax has been taken.
    """

    kind: Kind
    probabilities: bool = False

    @property
    def cotangent(self) -> Cotangent:
        """What damage is measured with."""
        if self.kind == "error":
            return relative_error
        return weighed_outcomes if self.probabilities else weighed_labels

    def compare(
        self, pairs: Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
    ) -> Closeness:
        """Return how far outputs are from their references, over batches of both by name."""
        rows = torch.cat([self._rows(reference, found) for reference, found in pairs])
        mean = float(rows.mean())
        error = float(rows.std() / math.sqrt(len(rows))) if len(rows) > 1 else math.inf
        return Closeness(self.kind, mean, error, len(rows))

    def _rows(self, reference: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Tensor:
        names = [n for n, value in reference.items() if value.is_floating_point()]
        if self.kind == "kl":
            first, second = (self._logs(side[names[0]]) for side in (reference, found))
            return (first.exp() * (first - second)).sum(-1).flatten()
        return torch.stack([_relative(reference[n], found[n]) for n in names]).sum(0)

    def _logs(self, output: Tensor) -> Tensor:
        values = output.double()
        return values.clamp(min=_TINY).log() if self.probabilities else values.log_softmax(-1)


def predictions_of(
    graph: Graph, example: Mapping[str, Tensor], figures: Sequence[str], wants_kl: bool
) -> Predictions:
    """Return what a model's predictions are; see the module's text.

    Args:
        graph: The float graph.
        example: Some of its outputs.
        figures: Names of what its ``evaluate`` measures.
        wants_kl: Whether the user gave a limit of KL divergence.
    """
    outputs = [v for v in example.values() if v.is_floating_point()]
    one = len(outputs) == 1 and outputs[0].dim() > 1 and outputs[0].shape[-1] > 1
    named = bool(figures) and _OF_CLASSES.match(figures[0].lower()) is not None
    if not one or not (wants_kl or named or graph.interface.labels):
        return Predictions("error")
    values = outputs[0]
    sums = (values.sum(-1) - 1).abs().max()
    return Predictions("kl", bool(values.min() >= 0) and bool(sums < _SUM))


def _relative(reference: Tensor, found: Tensor) -> Tensor:
    """Return the squared error of each sample over the mean power of a sample."""
    exact, rows = reference.double().flatten(1), len(reference)
    power = exact.square().sum() / max(1, rows)
    return (exact - found.double().flatten(1)).square().sum(1) / power.clamp(min=_TINY)
