"""Killed at any moment, a matrix leaves whole bundles, and the next build ends as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.folder_lock import lock_folder
from qcompile.runtime.manifest import read


def kill_once(project: Any, seconds: float, sign: int = signal.SIGKILL) -> int:
    """Begin to build, and send a signal after some time; return the exit code."""
    command = project.command("build", "--jobs", "2")
    pipe = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=project.folder, stdout=pipe, stderr=pipe) as process:
        time.sleep(seconds)
        process.send_signal(sign)
        return process.wait()


def check_whole(project: Any) -> None:
    """Every bundle that can be seen is whole."""
    for bundle in (project.folder / "build").glob("[!.]*"):
        read(bundle)


def check_clean(project: Any, clean: dict[str, bytes]) -> None:
    """A build now gives the clean result, and leaves nothing else."""
    project.run("build", "--jobs", "2")
    assert project.content() == clean
    lock = lock_folder(project.folder)
    assert lock is not None
    os.close(lock)


def clean_result(project: Any) -> tuple[dict[str, bytes], float]:
    """Build without disturbance; return all bytes and the time it took, and remove what was built."""
    start = time.perf_counter()
    project.run("build", "--jobs", "2")
    seconds, found = time.perf_counter() - start, project.content()
    forget(project)
    return found, seconds


def forget(project: Any) -> None:
    for name in project.content():
        if name == "qcompile.lock" or name.startswith("build/"):
            Path(project.folder, name).unlink()
    subprocess.run(["rm", "-rf", "build"], cwd=project.folder, check=True)


@pytest.mark.slow
def test_a_few_kills(small_project: Any) -> None:
    clean, seconds = clean_result(small_project)
    dice = random.Random(7)
    for _ in range(2):
        kill_once(small_project, dice.uniform(0.2, 0.9) * seconds)
        check_whole(small_project)
    check_clean(small_project, clean)


def test_ctrl_c_says_what_is_left(small_project: Any) -> None:
    command = small_project.command("build")
    with subprocess.Popen(
        command, cwd=small_project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().endswith("begins (never built)\n")
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate()
    assert process.returncode == 2
    assert stdout.count("stopped") == 2
    assert stderr == (
        "error: interrupted: 0 of 2 bundles are finished; the next build goes on with the other 2\n"
    )
    assert not (small_project.folder / "build").exists()


def test_two_at_once(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.compiler.ir.errors import OutputError
    from qcompile.compiler.matrix import build
    from qcompile.compiler.matrix.read import read as read_project

    lock = lock_folder(project.folder)
    assert lock is not None
    monkeypatch.setattr(build, "_SECONDS_TO_WAIT", 0)
    with pytest.raises(OutputError, match="another process is building this project"):
        build.build(read_project(project.folder / "qcompile.toml"))
    os.close(lock)


@pytest.mark.slow
def test_two_at_once_in_a_shell(small_project: Any) -> None:
    clean, _ = clean_result(small_project)
    command = small_project.command("build", "--jobs", "2", "--json")
    pipe = subprocess.PIPE
    both = [
        subprocess.Popen(command, cwd=small_project.folder, stdout=pipe, stderr=pipe, text=True)
        for _ in range(2)
    ]
    said = [json.loads(process.communicate()[0]) for process in both]
    results = sorted(str([row["result"] for row in s.get("builds", ())]) for s in said)
    refused = "another process is building this project: wait until it is done"
    assert results == [str(["built"] * 2), str(["up to date"] * 2)] or (
        results == [str(["built"] * 2), "[]"] and refused in [s.get("error") for s in said]
    )
    assert small_project.content() == clean
