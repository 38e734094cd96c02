"""Any sequence of uses, damages, evictions and kills gives what was put, or nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.stages import cache as stage_cache
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.entry import Entry
from qcompile.compiler.stages.folder import PART, Stored, entries, evict
from qcompile.compiler.stages.options import CacheOptions

KEYS = [f"{i:064x}" for i in range(4)]
_WRITER = """
import sys, torch
from pathlib import Path
from qcompile.compiler.stages.cache import StageCache
from qcompile.compiler.stages.entry import Entry
cache = StageCache(Path(sys.argv[1]), 3_000_000)
print("ready", flush=True)
while True:
    for key in sys.argv[2:]:
        cache.put("stage", key, Entry({"x": torch.full((200_000,), float(int(key, 16)))}, key))
"""


def entry_of(key: str) -> Entry:
    return Entry({"x": torch.full((8,), float(int(key, 16)))}, key)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "damage", "evict", "leftover"]), st.sampled_from(KEYS)
    ),
    max_size=12,
)


@given(STEPS)
def test_it_gives_what_was_put_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    notes: list[str] = []
    cache, known, damaged = StageCache(folder, note=notes.append), set(), set()
    for step, key in steps:
        file = folder / "stage" / key
        if step == "put":
            cache.put("stage", key, entry_of(key))
            known.add(key)
            damaged.discard(key)
        elif step == "damage" and key in known:
            file.write_bytes(file.read_bytes()[:-1])
            damaged.add(key)
        elif step == "evict":
            size = max((s.bytes for s in entries(folder)), default=0)
            known -= {stored.file.name for stored in evict(folder, size)}
            damaged &= known
        elif step == "leftover":
            (folder / "stage").mkdir(exist_ok=True)
            (folder / "stage" / f"{PART}1-{key}").write_bytes(b"half")
        else:
            found = cache.get("stage", key)
            assert (found is None) == (key not in known or key in damaged)
            if found is not None:
                assert found.pack() == entry_of(key).pack()
            assert len(notes) == (key in damaged)
            known -= {key} & damaged
            damaged.discard(key)
            notes.clear()


def test_what_was_read_last_stays(tmp_path: Path) -> None:
    size = len(entry_of(KEYS[0]).pack())
    cache = StageCache(tmp_path, 5 * size // 2)
    for moment, key in enumerate(KEYS[:2]):
        cache.put("stage", key, entry_of(key))
        os.utime(tmp_path / "stage" / key, (moment, moment))
    assert cache.get("stage", KEYS[0]) is not None
    cache.put("stage", KEYS[2], entry_of(KEYS[2]))
    assert {s.file.name for s in entries(tmp_path)} == {KEYS[0], KEYS[2]}


def test_a_cache_is_looked_through_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1,000 entries that are written the last are there, and it is seldom looked through."""
    size, count = len(entry_of(KEYS[0]).pack()), 500
    looks: list[int] = []

    def watched(folder: Path, max_bytes: int) -> list[Stored]:
        looks.append(max_bytes)
        return evict(folder, max_bytes)

    monkeypatch.setattr(stage_cache, "evict", watched)
    cache = StageCache(tmp_path, count * size)
    for index in range(2 * count):
        cache.put("stage", f"{index:04}", entry_of(KEYS[0]))
        os.utime(tmp_path / "stage" / f"{index:04}", (index, index))
    kept = [stored.file.name for stored in entries(tmp_path)]
    assert 0.96 * count <= len(kept) <= count
    assert kept == [f"{index:04}" for index in range(2 * count - len(kept), 2 * count)]
    assert len(looks) < 200


def test_a_new_part_is_left_and_an_old_one_removed(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    new, old = (tmp_path / "stage" / f"{PART}{i}-x" for i in (1, 2))
    new.touch()
    old.touch()
    os.utime(old, (0, 0))
    evict(tmp_path, 1 << 20)
    assert (new.exists(), old.exists()) == (True, False)


def test_two_writers_and_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", _WRITER, str(tmp_path), *KEYS]
    cache, seen = StageCache(tmp_path), 0
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE) as second,
    ):
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for key in KEYS:
                if (found := cache.get("stage", key)) is not None:
                    assert found.facts == key
                    assert bool((found.tensors["x"] == int(key, 16)).all())
                    seen += 1
        for process in (first, second):
            process.send_signal(signal.SIGKILL)
    assert seen
    for stored in entries(tmp_path):
        assert Entry.unpack(stored.file.read_bytes()) is not None


def test_one_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    notes: list[str] = []
    cache = CacheOptions(tmp_path / "file" / "cache").open(notes.append)
    for key in KEYS:
        cache.put("stage", key, entry_of(key))
        assert cache.get("stage", key) is None
    written = [n for n in notes if "cannot be written (Not a directory): nothing is kept" in n]
    assert len(written) == 1
    assert len(notes) <= 2


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    notes: list[str] = []
    StageCache(tmp_path, note=notes.append).put("stage", KEYS[0], entry_of(KEYS[0]))
    assert notes == [
        f"the cache {tmp_path} cannot be written (No space left on device): nothing is kept"
    ]
    assert not list(tmp_path.glob("*/*"))


def test_without_a_cache_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    NO_CACHE.put("stage", KEYS[0], entry_of(KEYS[0]))
    assert NO_CACHE.get("stage", KEYS[0]) is None
    assert not list(tmp_path.iterdir())


def test_options_reach_another_process(tmp_path: Path) -> None:
    for options in (CacheOptions(), CacheOptions(tmp_path, 5)):
        assert CacheOptions.from_json(options.as_json()) == options
