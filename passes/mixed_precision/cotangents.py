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


def standard_normal(output: Tensor, batch: int) -> Tensor:
    """Return independent normal numbers: of squared error."""
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(batch))
