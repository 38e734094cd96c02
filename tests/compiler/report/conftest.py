"""Bundles whose manifests say what a test wants; their files are those of the tiny INT8 bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Edit = Callable[[dict[str, Any]], Any]
Variant = Callable[..., Path]


@pytest.fixture
def variant(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Variant:
    """Make a copy of the bundle in the current folder, with another manifest."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, *edits: Edit) -> Path:
        folder = Path(shutil.copytree(built, tmp_path / name))
        data = manifest_of(folder)
        for edit in edits:
            edit(data)
        (folder / "manifest.json").write_text(json.dumps(data))
        return Path(name)

    return make


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())
