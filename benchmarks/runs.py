"""What runs images: an array in, an array out; the float network first of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Run = Callable[[np.ndarray], np.ndarray]


def eager(module: torch.nn.Module) -> Run:
    """Return what runs a batch in PyTorch, in float32."""

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits: np.ndarray = module(torch.from_numpy(images)).numpy()
        return logits

    return run
