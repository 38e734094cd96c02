"""Digests of large files are those of their bytes, and files that did not change are not read."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from qcompile.compiler.matrix import known_digests
from qcompile.compiler.matrix.known_digests import file_digest
from qcompile.runtime.manifest import file_sha256


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read; all count as large, and as settled."""
    found: list[Path] = []

    def watched(path: Path) -> str:
        found.append(path)
        return file_sha256(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_digests, "file_sha256", watched)
    monkeypatch.setattr(known_digests, "LARGE", 4)
    monkeypatch.setattr(known_digests, "_SETTLED", -1.0)
    return found


def expected(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"large 1")
    other.write_bytes(b"large 2")
    for _ in range(2):
        assert (file_digest(one), file_digest(other)) == (expected(one), expected(other))
    assert reads == [one, other]


def test_one_that_changed_in_secret_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"before")
    file_digest(file)
    times = file.stat()
    file.write_bytes(b"after!")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file_digest(file) == expected(file)
    assert len(reads) == 2


def test_small_files_and_fresh_ones_are_not_kept(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    small, fresh = tmp_path / "small", tmp_path / "fresh"
    small.write_bytes(b"1")
    fresh.write_bytes(b"large")
    monkeypatch.setattr(known_digests, "_SETTLED", 60.0)
    for file in (small, fresh, small, fresh):
        assert file_digest(file) == expected(file)
    assert reads == [small, fresh, small, fresh]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damaged", ["{", "[]", '{"FILE": 3}', '{"FILE": ["x"]}'])
def test_a_damaged_list_is_made_again(tmp_path: Path, reads: list[Path], damaged: str) -> None:
    file, kept = tmp_path / "file", tmp_path / "cache" / "qcompile" / "digests.json"
    file.write_bytes(b"large")
    kept.parent.mkdir(parents=True)
    kept.write_text(damaged.replace("FILE", str(file)))
    assert file_digest(file) == expected(file)
    assert file_digest(file) == expected(file)
    assert len(reads) == 1


def test_a_cache_that_cannot_be_written_harms_nothing(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "occupied"))
    file = tmp_path / "file"
    file.write_bytes(b"large")
    assert file_digest(file) == file_digest(file) == expected(file)
    assert len(reads) == 2
