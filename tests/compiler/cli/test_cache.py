"""``qcompile cache`` shows and removes what builds keep."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from qcompile.compiler.stages.cache import StageCache
from qcompile.compiler.stages.entry import Entry

STAGES = {"channel-statistics", "onnx", "quantize"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cache = StageCache(tmp_path / "cache")
    for stage, count in (("onnx", 1), ("quantize", 2)):
        for i in range(count):
            cache.put(stage, f"{i:064x}", Entry({"x": torch.zeros(100)}, None))
    return tmp_path / "cache"


def test_it_is_shown(folder: Path, run: Callable[..., Result]) -> None:
    found = json.loads(run("cache", "--cache-dir", str(folder), "--json").stdout)
    assert [(row["stage"], row["entries"]) for row in found["stages"]] == [
        ("onnx", 1),
        ("quantize", 2),
    ]
    size = sum(file.stat().st_size for file in folder.glob("*/*"))
    assert sum(row["bytes"] for row in found["stages"]) == size
    assert f"{size:,}" in run("cache", "--cache-dir", str(folder)).stdout


def test_it_is_pruned(folder: Path, run: Callable[..., Result]) -> None:
    size = max(file.stat().st_size for file in folder.glob("*/*"))
    said = run("cache", "--cache-dir", str(folder), "--prune", str(size)).stdout
    assert "removed: 2 entries" in said.replace("\n", "")
    assert len(list(folder.glob("*/*"))) == 1
    run("cache", "--cache-dir", str(folder), "--prune", "0")
    assert not list(folder.glob("*/*"))


def test_one_that_is_not_there_is_empty(tmp_path: Path, run: Callable[..., Result]) -> None:
    found = json.loads(run("cache", "--cache-dir", str(tmp_path / "none"), "--json").stdout)
    assert found["stages"] == []
    assert not (tmp_path / "none").exists()


def test_options_that_contradict_each_other(
    here: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    arguments = ("tiny.py", "--target", "pixel-8", "--no-cache", "--cache-dir", str(tmp_path))
    result = run(*arguments)
    assert result.exit_code == 2
    assert "--cache-dir is for a cache, and --no-cache is given" in result.stderr


def test_a_single_build_has_a_cache_if_one_is_named(
    here: Path, tmp_path: Path, run: Callable[..., Result]
) -> None:
    build = ("tiny.py", "--target", "pixel-8", "--force", "--output", "a.qc")
    assert run(*build, "--cache-dir", str(tmp_path / "cache")).exit_code == 0
    assert {f.parent.name for f in (tmp_path / "cache").glob("*/*")} == STAGES


def test_a_remote_cache_is_read_and_written(
    here: Path, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (here / "shared").as_uri()
    build = ("tiny.py", "--target", "pixel-8", "--force", "--output", "a.qc", "--cache-dir")
    assert run(*build, "one", "--remote-cache", url, "--remote-cache-read-only").exit_code == 0
    assert not (here / "shared").exists()
    assert run(*build, "two", "--remote-cache", url).exit_code == 0
    made = {f.relative_to(here / "shared"): f.read_bytes() for f in (here / "shared").glob("*/*")}
    assert {name.parts[0] for name in made} == STAGES
    monkeypatch.setenv("QCOMPILE_REMOTE_CACHE", url)
    assert run(*build, "three").exit_code == 0
    assert {n: (here / "three" / n).read_bytes() for n in made} == made


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--remote-cache-read-only",), "--remote-cache-read-only needs --remote-cache URL"),
        (("--remote-cache", "s4://bucket"), "'s4', which fsspec does not know"),
    ],
)
def test_what_is_no_remote_cache(
    here: Path, run: Callable[..., Result], arguments: tuple[str, ...], said: str
) -> None:
    result = run("tiny.py", "--target", "pixel-8", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(here.glob("*.qc"))
