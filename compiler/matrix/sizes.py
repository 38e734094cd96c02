"""Sizes in bytes as people write them, on the command line and in ``qcompile.toml``."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
SIZE = r"([0-9]+(?:\.[0-9]+)?)\s*([kmgKMG]?[iI]?)[bB]?"


def size(value: Any) -> int:
    """Return bytes: of ``4GiB``, ``500MB``, or the number itself.

    Raises:
        ValueError: It is no size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(SIZE, value.strip()) if isinstance(value, str) else None
    if not match or match[2].lower() not in _UNITS:
        raise ValueError(f"{value!r} is no size; write 4GiB, 500MB or 1024")
    return int(float(match[1]) * _UNITS[match[2].lower()])
