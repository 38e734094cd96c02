"""A remote cache gives what was put, or nothing; it may fail in any way, and no message tells a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qcompile.compiler.stages.entry import Entry
from qcompile.compiler.stages.options import CacheOptions
from qcompile.compiler.stages.remote import RemoteEntries

fsspec = pytest.importorskip("fsspec")
KEY = "0" * 64
ENTRY = Entry({"x": torch.arange(5)}, "facts")


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_one_machine_makes_and_another_reads(scheme: str, tmp_path: Path, notes: list[str]) -> None:
    url = f"{scheme}://{tmp_path}/shared"
    first, second = (CacheOptions(tmp_path / n, remote=url).open(notes.append) for n in "ab")
    assert first.get("stage", KEY) is None
    first.put("stage", KEY, ENTRY)
    found = second.get("stage", KEY)
    assert found is not None
    assert found.pack() == ENTRY.pack()
    assert (tmp_path / "b" / "stage" / KEY).read_bytes() == ENTRY.pack()
    assert notes == []
    fs, path = fsspec.url_to_fs(url)
    assert [Path(name).name for name in fs.find(path)] == [KEY]


def test_only_its_own_folder_is_made(tmp_path: Path, notes: list[str]) -> None:
    """What is above may be a bucket that somebody else would pay for, or a disk that is not there."""
    for name in ("new", "no/folder"):
        url = (tmp_path / name).as_uri()
        CacheOptions(tmp_path / "a", remote=url).open(notes.append).put("stage", KEY, ENTRY)
    assert (tmp_path / "new" / "stage" / KEY).is_file()
    assert not (tmp_path / "no").exists()
    assert [note.partition("cannot be written")[1:] for note in notes] == [
        ("cannot be written", " (there is nothing): built without it")
    ]


def test_a_reader_writes_nothing(tmp_path: Path, notes: list[str]) -> None:
    url = (tmp_path / "shared").as_uri()
    reader = CacheOptions(tmp_path / "a", remote=url, read_only=True).open(notes.append)
    reader.put("stage", KEY, ENTRY)
    assert reader.get("stage", KEY) is not None
    assert not (tmp_path / "shared").exists()


def test_a_damaged_entry_is_said_and_replaced(tmp_path: Path, notes: list[str]) -> None:
    file = tmp_path / "shared" / "stage" / KEY
    file.parent.mkdir(parents=True)
    file.write_bytes(ENTRY.pack()[:-1])
    cache = CacheOptions(tmp_path / "a", remote=(tmp_path / "shared").as_uri()).open(notes.append)
    assert cache.get("stage", KEY) is None
    assert notes == [f"the remote cache's entry stage/{KEY} is damaged: it is made again"]
    cache.put("stage", KEY, ENTRY)
    assert file.read_bytes() == ENTRY.pack()


class Failing:
    """A file system without a network; it quotes its URL."""

    def __init__(self) -> None:
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        def fail(*arguments: Any, **options: Any) -> None:
            self.asked += 1
            raise ConnectionError("https://user:secret@host refused")

        return fail


def test_one_that_fails_is_left_alone_and_tells_no_secret(notes: list[str]) -> None:
    fs: Any = Failing()
    remote = RemoteEntries(fs, "bucket", "https://***@host/bucket", True, notes.append)
    for _ in range(3):
        assert remote.get(f"stage/{KEY}") is None
        remote.put(f"stage/{KEY}", b"data")
    assert fs.asked == 1
    assert notes == [
        "the remote cache https://***@host/bucket cannot be read (it cannot be reached): built without it"
    ]


def test_a_url_with_a_secret_is_not_printed(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "file").touch()
    url = f"file://{tmp_path}/file/below?signature=hunter2"
    cache = CacheOptions(tmp_path / "a", remote=url).open(notes.append)
    cache.put("stage", KEY, ENTRY)
    assert notes
    assert not any("hunter2" in note for note in notes)
