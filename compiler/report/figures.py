"""Values of a manifest as they are printed. A manifest may come from anywhere: nothing in it is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

MISSING = "\N{EN DASH}"
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]"
)
"""What XML cannot hold, UTF-8 cannot encode, or a terminal would obey."""


def text(value: Any) -> str:
    """Return a string of a manifest without control characters, on one line.

    Raises:
        TypeError: It is no string.
    """
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return " ".join(_UNPRINTABLE.sub("\ufffd", value).split())


def plain(value: Any) -> str:
    """Return any value of a manifest as text: a string as it is, other data as Python writes it."""
    return text(value if isinstance(value, str) else str(value))


def number(value: Any) -> float | None:
    """Return a finite number, or ``None`` where nothing was measured.

    Raises:
        TypeError: It is no number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def count(value: Any) -> int:
    """Return a whole number, 0 or more.

    Raises:
        TypeError: It is none.
    """
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no count")
    return value


def optional(row: Mapping[str, Any], key: str) -> float | None:
    """Return a number that older manifests may not have."""
    return number(row.get(key))


def decibels(value: float | None) -> str:
    """Return decibels with one decimal."""
    return MISSING if value is None else f"{value:.1f}"


def whole(value: float | None) -> str:
    """Return a count with commas."""
    return MISSING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Return three digits that count."""
    return MISSING if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Return a share in percent."""
    return MISSING if value is None else f"{100 * value:.2f}"


def changed(value: float | None, *, digits: int = 0) -> str:
    """Return a difference with its sign."""
    return MISSING if value is None else f"{value:+,.{digits}f}"


def difference(before: float | None, after: float | None) -> float | None:
    """Return what was added; ``None`` where one of the two was not measured."""
    return None if before is None or after is None else after - before
