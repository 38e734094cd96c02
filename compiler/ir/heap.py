"""Memory that was freed, and that the C library keeps for later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any


def give_back() -> None:
    """Return freed memory to the system, where the C library can (glibc).

    Each thread has a heap of its own there, and arrays of a few megabytes leave holes in it: over
    hundreds of weights they add up to gigabytes, all of them free.

    Source: malloc_trim(3).
    """
    _trim()(0)


@cache
def _trim() -> Callable[[int], Any]:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return getattr(library, "malloc_trim", lambda keep: 0)
