"""What the way back begins with: gradients whose squares, on average, say how much an error costs.

An error ``d`` of a value changes the outputs by ``J d``. For a random gradient ``z`` of the outputs with
``E[z z^T] = F``, ``E[(z^T J d)^2] = (J d)^T F (J d)``. Half of it is, to second order,

* the KL divergence of the softmax, where ``z`` is the gradient of ``-log p(y)`` for a ``y`` drawn from the
  model's own predictions: then F is the Fisher information (Amari 1998);
* half the squared error of the outputs, where ``z`` is a standard normal.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TINY = 1e-30


def drawn_labels(logits: Tensor, batch: int) -> Tensor:
    """Return ``p - onehot(y)`` for a label ``y ~ p`` at each position: of KL divergence.

    Args:
        logits: ``[..., classes]``.
        batch: Seeds the draw.
    """
    p = logits.float().softmax(-1)
    seeded = torch.Generator().manual_seed(batch)
    drawn = torch.multinomial(p.flatten(0, -2), 1, generator=seeded)
    return p - torch.zeros_like(p).flatten(0, -2).scatter_(-1, drawn, 1.0).reshape(p.shape)


def weighed_outcomes(probabilities: Tensor, batch: int) -> Tensor:
    """Return ``weighed_labels`` of what is a softmax already."""
    p = probabilities.clamp(min=_TINY)
    return weighed_labels(p.log(), batch) / p


def relative_error(output: Tensor, batch: int) -> Tensor:
    """Return normal numbers whose cost is the squared error over the power of the output.

    Args:
        output: The first axis counts samples.
        batch: Seeds the draw.
    """
    power = output.double().square().sum() / max(1, len(output))
    return standard_normal(output, batch) * (2 / power.clamp(min=_TINY)).sqrt().to(output.dtype)


def weighed_labels(logits: Tensor, batch: int) -> Tensor:
    """Return ``sqrt(p_y / q_y) (p - onehot(y))`` for a label ``y ~ q``: of KL divergence, for few samples.

    With ``q`` in proportion to ``p_y |p - onehot(y)|`` a sure prediction is not drawn over and over, whose
    gradient is nearly nothing; the factor leaves the mean as it is (importance sampling).

    Args:
        logits: ``[..., classes]``.
        batch: Seeds the draw.
    """
    p = logits.double().softmax(-1).flatten(0, -2)
    length = (p.square().sum(-1, keepdim=True) - 2 * p + 1).clamp(min=0).sqrt()
    q = p * length + 1e-12
    q = q / q.sum(-1, keepdim=True)
    drawn = torch.multinomial(q, 1, generator=torch.Generator().manual_seed(batch))
    factor = (p.gather(-1, drawn) / q.gather(-1, drawn)).sqrt()
    found = factor * (p - torch.zeros_like(p).scatter_(-1, drawn, 1.0))
    return found.reshape(logits.shape).to(logits.dtype)


def standard_normal(output: Tensor, batch: int) -> Tensor:
    """Return independent normal numbers: of squared error."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(batch))
