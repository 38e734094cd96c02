"""``Checkpoint``: the directory that a language model came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face directory beside the graph that was made of it.

    Args:
        path: With ``config.json``, tokenizer, templates.
        config: Of ``config.json``.
        shapes: Of the parameters, by the names of the graph's weights.
        context: Tokens that a sequence may have.
    """

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    context: int
