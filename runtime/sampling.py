"""Logits -> the next token."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import InputError


class Sampler:
    """Chooses tokens; the same settings and logits give the same tokens.

    Args:
        temperature: 0 takes the likeliest token, always; above, logits are divided by it.
        top_k: Then only so many tokens may be chosen; 0 for all.
        top_p: Of these, the likeliest ones that together have this probability.
        seed: Of the choice.

    Raises:
        InputError: Says which settings are out of range.
    """

    def __init__(self, temperature: float, top_k: int, top_p: float, seed: int) -> None:
        wrong = [
            text
            for text, good in (
                (f"temperature {temperature:g} is not 0 or more", 0 <= temperature < np.inf),
                (f"top_k {top_k} is not 0 or more", top_k >= 0),
                (f"top_p {top_p:g} is not above 0 and at most 1", 0 < top_p <= 1),
                (f"seed {seed} is not 0 or more", seed >= 0),
            )
            if not good
        ]
        if wrong:
            raise InputError("; ".join(wrong))
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: NDArray[Any]) -> int:
        """Return a token for the logits ``[vocabulary]``."""
        if self.temperature == 0:
            return int(logits.argmax())
        tokens = np.argsort(-logits, kind="stable")[: self.top_k or None]
        scaled = (logits[tokens].astype(np.float64) - logits[tokens[0]]) / self.temperature
        shares = np.exp(scaled)
        total = np.cumsum(shares / shares.sum())
        count = min(int(np.searchsorted(total, self.top_p)) + 1, len(tokens))
        drawn = self._random.random() * total[count - 1]
        return int(tokens[min(int(np.searchsorted(total, drawn, side="right")), count - 1)])
