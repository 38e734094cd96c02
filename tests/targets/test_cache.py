"""The cache: whole or not at all, also when two processes fill it."""

from __future__ import annotations

from pathlib import Path

import pytest

from qcompile.compiler.ir.errors import OutputError
from qcompile.targets.cache import cache_root, cached, digest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cache_is_written_at_once_or_not_at_all() -> None:
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "f").write_text("x")
        if len(calls) == 1:
            raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        cached("name", make)
    assert list((cache_root()).iterdir()) == []
    assert (cached("name", make) / "f").read_text() == "x"
    cached("name", make)
    assert len(calls) == 2


def test_two_processes_fill_the_cache() -> None:
    def make(folder: Path) -> None:
        (folder / "f").write_text("mine")
        other = cache_root() / "name"
        other.mkdir()
        (other / "f").write_text("theirs")

    assert (cached("name", make) / "f").read_text() == "theirs"


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        cached("name", lambda folder: None)


def test_digest_depends_on_parts_and_order() -> None:
    found = {digest(p) for p in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(found) == 4
    assert digest(["a"]) == digest([b"a"])
