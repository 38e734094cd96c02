"""The formats that there are, without importing their emitters."""

from __future__ import annotations

import pkgutil
from pathlib import Path


def emitter_names() -> list[str]:
    """Return the names of all formats: a folder here is an emitter, but for ``devices``."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(m.name for m in modules if m.ispkg and m.name != "devices")


def is_directory(model: str, target: str) -> bool:
    """Return whether a model is a language model's directory, and the target leaves the format open."""
    return (Path(model) / "config.json").is_file() and target not in emitter_names()
