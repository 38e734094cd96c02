"""What was found out about files and folders, kept in the user's cache as long as they are there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qcompile.targets.cache import cache_root

DURATIONS = "durations"
"""Seconds that builds took, by bundle."""


def recall(kind: str) -> dict[str, Any]:
    """Return what is known by absolute path; of a damaged file nothing is."""
    try:
        found = json.loads((cache_root() / f"{kind}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(kind: str, rows: Mapping[str, Any]) -> None:
    """Add rows by absolute path; those of paths that are gone are left out.

    What cannot be written is not known the next time, and what another process adds just now may be lost.
    """
    known = {name: row for name, row in recall(kind).items() if os.path.exists(name)}
    file = cache_root() / f"{kind}.json"
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(known | dict(rows), indent=1, sort_keys=True), encoding="utf-8")
        part.replace(file)
