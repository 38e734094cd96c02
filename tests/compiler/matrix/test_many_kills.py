"""``kill -9`` of a matrix at random stages: ``QCOMPILE_KILLS=100 pytest -m slow -s`` makes a hundred."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.folder_lock import lock_folder

_BUILD = """
import sys
from pathlib import Path
from qcompile.compiler.matrix.build import Listener, build
from qcompile.compiler.matrix.read import read

def say(*words):
    print(*words, flush=True)

said = Listener(lambda name, why: say("start"), lambda name, said: say(said.get("stage", "note")),
                lambda outcome: say("finished"))
say("begin")
build(read(Path("qcompile.toml")), jobs=2, listener=said)
say("end")
"""
_COMMAND = (sys.executable, "-P", "-c", _BUILD)
VICTIMS = ("parent", "all", "build")


def sizes(folder: Path) -> dict[str, int]:
    """Return the files of a folder with their sizes."""
    found = [Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return {str(f.relative_to(folder)): f.stat().st_size for f in found}


@contextlib.contextmanager
def watched(folder: Path, whole: Mapping[str, Mapping[str, int]]) -> Iterator[list[str]]:
    """Look all the time at what is visible in a folder; give what was not whole.

    A folder that is being read while another one takes its place is read twice.
    """
    halves: list[str] = []
    end = threading.Event()

    def look() -> None:
        while not end.wait(0.01):
            with contextlib.suppress(FileNotFoundError):
                visible = [name for name in os.listdir(folder) if not name.startswith(".")]
                halves.extend(name for name in visible if not is_whole(folder / name, whole))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield halves
    finally:
        end.set()
        thread.join()


def is_whole(bundle: Path, whole: Mapping[str, Mapping[str, int]]) -> bool:
    for _ in range(2):
        with contextlib.suppress(FileNotFoundError):
            if sizes(bundle) == whole.get(bundle.name):
                return True
        if not bundle.exists():  # it was removed, or is being replaced, since it was listed
            return True
        time.sleep(0.02)
    return False


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.is_file() else []


def birth(pid: int) -> str:
    """Return when a process began, in ticks of the kernel; of one that ended, waited for or not, nothing."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def kill(folder: Path, report: int, seconds: float, victim: str) -> tuple[str, dict[int, str]]:
    """Begin to build, and kill after so many reports and seconds.

    Returns:
        The last report, and the processes that must end, with their births.
    """
    with subprocess.Popen(
        _COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = [line for line, _ in zip(process.stdout, range(report + 1), strict=False)]
        time.sleep(seconds)
        builds = {pid: birth(pid) for pid in children(process.pid)}
        killed = {
            "parent": [process.pid],
            "all": [process.pid, *builds],
            "build": list(builds)[:1],
        }[victim]
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        lines += list(process.stdout)
    return lines[report if report < len(lines) else -1].strip(), builds


def forget(project: Any, dice: random.Random) -> None:
    """Remove some of what was built, or all."""
    for bundle in sorted((project.folder / "build").iterdir()):
        if dice.random() < 0.7:
            aside = bundle.rename(project.folder.parent / "forgotten")
            shutil.rmtree(aside)
    if dice.random() < 0.7:
        (project.folder / "qcompile.lock").unlink()


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="children of a process are read from /proc")
def test_every_build_after_a_kill_gives_the_clean_result(small_project: Any) -> None:
    folder, dice, hits, start = (
        small_project.folder,
        random.Random(9),
        Counter[str](),
        time.monotonic(),
    )
    reports = subprocess.run(_COMMAND, cwd=folder, capture_output=True, text=True, check=True)
    clean, count = small_project.content(), len(reports.stdout.splitlines())
    assert reports.stdout.startswith("begin\nstart\n")
    whole = {bundle.name: sizes(bundle) for bundle in (folder / "build").iterdir()}
    kills = int(os.environ.get("QCOMPILE_KILLS", "4"))
    with watched(folder / "build", whole) as halves:
        for _ in range(kills):
            forget(small_project, dice)
            victim, report = dice.choice(VICTIMS), dice.randrange(count - 1)
            stage, builds = kill(folder, report, dice.uniform(0, 0.3), victim)
            hits[f"{victim} at {stage}"] += 1
            print(f"{time.monotonic() - start:.0f} s: {victim} at {stage}", flush=True)
            visible = {n: b for n, b in small_project.content("build").items() if "/." not in n}
            assert visible.items() <= clean.items()
            small_project.run("build", "--jobs", "2")
            assert small_project.content() == clean
            assert [pid for pid, born in builds.items() if born and birth(pid) == born] == []
            lock = lock_folder(folder)
            assert lock is not None
            os.close(lock)
    assert halves == []
    print(f"\n{kills} kills in {time.monotonic() - start:.0f} s: {dict(sorted(hits.items()))}")
