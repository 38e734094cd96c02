"""How a build tells what it is doing; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Two callbacks.

    Args:
        stage: Told the name of each stage when it starts.
        share: Told the share of the stage that is done, 0 to 1.
    """

    stage: Callable[[str], None] = lambda name: None
    share: Callable[[float], None] = lambda share: None
