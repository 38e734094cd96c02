"""How a build tells what it is doing; the command line draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Callbacks.

    Args:
        stage: Told the name of each stage when it starts.
        share: Told the share of the stage that is done, 0 to 1.
        note: Told what a user should know before the work, a sentence each.
        measured: Told the share of tuning that is done, and lines that say what was found.
    """

    stage: Callable[[str], None] = lambda name: None
    share: Callable[[float], None] = lambda share: None
    note: Callable[[str], None] = lambda text: None
    measured: Callable[[float, Sequence[str]], None] = lambda share, lines: None
