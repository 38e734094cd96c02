"""Predictions of a language model on its vector: the next token that PyTorch and the artifact expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.runtime.errors import BundleError, MissingPackageError
from qcompile.runtime.llama.model import Model

Array = NDArray[Any]
SHOWN = 16


@dataclass(frozen=True)
class Token:
    """A position of the vector.

    Args:
        token: What stands there.
        expected: The most probable next token in PyTorch.
        expected_share: Its probability in PyTorch.
        found: The most probable next token in the artifact.
        found_share: Its probability in the artifact.
    """

    token: str
    expected: str
    expected_share: float
    found: str
    found_share: float

    @property
    def same(self) -> bool:
        """Whether both expect the same token."""
        return self.expected == self.found


def tokens(
    artifact: Path,
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    found: Mapping[str, Array],
) -> tuple[Token, ...]:
    """Return the last positions of the first sequence.

    Args:
        artifact: The file, whose words are read if llama-cpp-python is installed.
        inputs: One array of ids ``[sequences, n]``.
        expected: PyTorch's logits ``[sequences, n, vocabulary]``.
        found: The artifact's.
    """
    (ids,), (reference,), (values,) = inputs.values(), expected.values(), found.values()
    say = _words(artifact)
    return tuple(
        Token(say(int(ids[0, p])), *_best(reference[0, p], say), *_best(values[0, p], say))
        for p in range(max(0, ids.shape[1] - SHOWN), ids.shape[1])
    )


def _best(logits: Array, say: Callable[[int], str]) -> tuple[str, float]:
    shares = np.exp(logits.astype(np.float64) - logits.max())
    best = int(logits.argmax())
    return say(best), float(shares[best] / shares.sum())


def _words(artifact: Path) -> Callable[[int], str]:
    """Return what a token says; its number where llama.cpp is not installed."""
    try:
        model = Model(artifact, empty=True)
    except (MissingPackageError, BundleError):
        return lambda token: f"token {token}"
    return lambda token: _said(model, token)


def _said(model: Model, token: int) -> str:
    """Return a token's text; its number if the model has no such token, which llama.cpp does not check."""
    if not 0 <= token < model.vocabulary:
        return f"token {token}"
    return _shown(model.piece(token, special=True).decode("utf-8", "replace"))


def _shown(piece: str) -> str:
    """Return a piece of text with its spaces and line ends visible."""
    marked = piece.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else "\ufffd" for c in marked) or "(nothing)"
