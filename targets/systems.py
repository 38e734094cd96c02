"""Operating systems by version: which there are, and which are too old for a format."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(r"([1-9]\d?)(\.\d{1,2}){0,2}", re.ASCII)


@dataclass(frozen=True)
class System:
    """An operating system that went from its own count to the year's.

    Apple's systems of autumn 2025 are all called 26 (https://en.wikipedia.org/wiki/IOS_26).

    Args:
        name: As people write it.
        last: The last version by its own count.
        year: The first that is named by the year.
    """

    name: str
    last: int
    year: int = 26


SYSTEMS = {"ios": System("iOS", 18), "macos": System("macOS", 15)}
"""By the name that device files use."""


def major(version: str) -> int | None:
    """Return 17 for ``17.4``, and ``None`` for what is no version."""
    found = _VERSION.fullmatch(version)
    return int(found[1]) if found else None


def refusal(os: str, version: str, oldest: int, format: str) -> str | None:
    """Return why a format cannot be written for a version of a system, ``None`` if it can.

    Args:
        os: One of ``SYSTEMS``.
        version: As the user wrote it.
        oldest: The first major version that the format is written for.
        format: Its name, for the sentence.
    """
    system, number = SYSTEMS[os], major(version)
    if number is None:
        return f"{version!r} is no version of {system.name}; write '{oldest}' or '{system.last}.0'"
    if system.last < number < system.year:
        return f"there is no {system.name} {version}: after {system.last} came {system.year}"
    if number < oldest:
        return f"{system.name} {version} is too old: {format} needs {system.name} {oldest} or later"
    return None
