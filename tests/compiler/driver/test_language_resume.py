"""Builds of language models that are made twice, killed, resumed, shared, or made by two at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, language
from qcompile.compiler.driver.work_folder import held, is_held
from qcompile.compiler.frontend.load import Source, load
from qcompile.compiler.ir.errors import OutputError
from qcompile.compiler.stages.cache import StageCache
from qcompile.passes.calibration.walk import Walk
from qcompile.passes.quantization import fold_input_scales, quantize_blocks
from qcompile.passes.quantization.block_store import BlockStore

pytest.importorskip("llama_cpp")
Calibrated = Callable[..., Options]


def contents(folder: Path) -> dict[str, bytes]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def stored(monkeypatch: pytest.MonkeyPatch, kill_after: int | None = None) -> list[str]:
    """Return a list that gets the name of each weight as a build stores it.

    Args:
        monkeypatch: Ends it.
        kill_after: Weights after which the build is killed.
    """
    put, names = BlockStore.put, list[str]()

    def watched(self: BlockStore, name: str, *rest: Any) -> Any:
        if len(names) == kill_after:
            raise KeyboardInterrupt
        names.append(name)
        return put(self, name, *rest)

    monkeypatch.setattr(BlockStore, "put", watched)
    return names


def build_killed(source: Source, folder: Path, given: Options, after: int) -> list[str]:
    """Kill a build once it has stored so many weights; return their names."""
    with pytest.MonkeyPatch.context() as patch:
        names = stored(patch, kill_after=after)
        with pytest.raises(KeyboardInterrupt):
            build(source, folder, given)
    assert len(names) == after
    (work,) = os.listdir(folder.parent)
    assert work.startswith(f".{folder.name}.work-")
    return names


def test_two_builds_are_the_same_bytes(
    language_bundle: Bundle, tiny_llama: Path, calibrated: Calibrated, tmp_path: Path
) -> None:
    again = build(load(str(tiny_llama)), tmp_path / "tiny.qc", calibrated())
    assert contents(again.path) == contents(language_bundle.path)


def test_a_killed_build_goes_on(
    language_bundle: Bundle,
    tiny_source: Source,
    calibrated: Calibrated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "tiny.qc"
    done = build_killed(tiny_source, folder, calibrated(), after=3)
    work = os.listdir(tmp_path)
    with pytest.raises(OutputError, match="is of another model, calibration data or options"):
        build(tiny_source, folder, calibrated(precision="q6_k", resume=True))
    assert os.listdir(tmp_path) == work
    again = stored(monkeypatch)
    resumed = build(tiny_source, folder, calibrated(resume=True))
    assert again
    assert not set(again) & set(done)
    assert contents(resumed.path) == contents(language_bundle.path)
    assert os.listdir(tmp_path) == ["tiny.qc"]


def test_a_resumed_build_repeats_neither_foldings_nor_statistics(
    language_bundle: Bundle,
    tiny_source: Source,
    calibrated: Calibrated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before the first weight is done, when all that was found is foldings and moments."""
    run, walked = Walk.run, list[str]()

    def counted(self: Walk, visitor: Any) -> None:
        walked.append(type(visitor).__name__)
        run(self, visitor)

    monkeypatch.setattr(Walk, "run", counted)
    folder = tmp_path / "tiny.qc"
    build_killed(tiny_source, folder, calibrated(), after=0)
    assert walked == ["_Chooser", "OutputWatch", "BlockRounder"]
    walked.clear()
    resumed = build(tiny_source, folder, calibrated(resume=True))
    assert walked == ["BlockRounder"]
    assert contents(resumed.path) == contents(language_bundle.path)
    assert os.listdir(tmp_path) == ["tiny.qc"]


@pytest.mark.slow
def test_kill_9_and_resume(tiny_llama: Path, language_text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny.qc"
    command = [sys.executable, "-m", "qcompile", str(tiny_llama), "--target", "gguf"]
    command += ["-p", "q4_k_m", "--calibrate", str(language_text), "--seq-len", "32", "-o"]
    started = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".tiny.qc.work-*/*.json")):
        assert started.poll() is None
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert not folder.exists()
    subprocess.run([*command, str(folder), "--resume"], check=True, stdout=subprocess.DEVNULL)
    whole = tmp_path / "whole.qc"
    subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == contents(whole)
    assert sorted(os.listdir(tmp_path)) == ["tiny.qc", "whole.qc"]


def test_what_another_build_left_is_removed(tiny_source: Source, tmp_path: Path) -> None:
    old, given = tmp_path / ".tiny.qc.work-0123", Options(target="gguf", precision="q4_k_m")
    old.mkdir()
    found = language.work_folder(tiny_source, given.resolve(), given, tmp_path / "tiny.qc")
    assert found.name.startswith(".tiny.qc.work-")
    assert not old.exists()


@pytest.mark.parametrize("precision", ["q4_k_m", "q8_0"])
def test_a_second_build_of_one_bundle_is_refused(
    tiny_source: Source, tmp_path: Path, precision: str
) -> None:
    """Whether it is the same build, which has the same work folder, or another one."""
    folder, given = tmp_path / "tiny.qc", Options(target="gguf", precision="q4_k_m")
    work = language.work_folder(tiny_source, given.resolve(), given, folder)
    with held(work, folder):
        (work / "done").touch()
        for resume in (False, True):
            with pytest.raises(OutputError, match="another process is building"):
                build(tiny_source, folder, replace(given, precision=precision, resume=resume))
        assert os.listdir(tmp_path) == [work.name]
        assert os.listdir(work) == ["done"]
    shutil.rmtree(work)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The lock ends with its process, so what that left can be used or removed."""
    work, folder = tmp_path / ".tiny.qc.work-1", tmp_path / "tiny.qc"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from qcompile.compiler.driver.work_folder import held\n"
        "with held(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(work), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(work)
        with pytest.raises(OutputError, match="another process is building"), held(work, folder):
            pass
        process.kill()
    with held(work, folder):
        assert is_held(work)
    assert not is_held(work)


def test_another_device_finds_the_blocks(
    language_bundle: Bundle,
    tiny_source: Source,
    calibrated: Calibrated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = StageCache(tmp_path / "cache")
    cold = build(tiny_source, tmp_path / "cold.qc", calibrated(), stages=cache)
    assert contents(cold.path) == contents(language_bundle.path)
    assert cache.hits == []
    for module in (fold_input_scales, quantize_blocks):
        monkeypatch.setattr(module, "Walk", None)  # nothing is looked at again
    warm = build(tiny_source, tmp_path / "warm.qc", calibrated(), stages=cache)
    assert contents(warm.path) == contents(language_bundle.path)
    assert set(cache.hits) == {"fold-input-scales", "quantize-blocks"}


def test_another_format_finds_nothing(
    tiny_source: Source, calibrated: Calibrated, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    build(tiny_source, tmp_path / "a.qc", calibrated(precision="q4_0"), stages=cache)
    build(tiny_source, tmp_path / "b.qc", calibrated(precision="q8_0"), stages=cache)
    assert cache.hits == []
