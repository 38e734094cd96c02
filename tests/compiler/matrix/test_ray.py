"""Builds on Ray: the bytes of local ones, whatever becomes of workers; nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
RAY = ("build", "--jobs", "2", "--executor", "ray")
BUILD = "qcompile.compiler.matrix.worker"


def processes() -> dict[int, tuple[int, str]]:
    """Return parent and command line of each process that runs, by its id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(") ")[2].split()[:2]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if state != "Z":
            found[int(folder.name)] = (int(parent), command)
    return found


def below(pid: int) -> dict[int, tuple[int, str]]:
    """Return the processes that a process started, and those that these did."""
    running, found = processes(), {pid}
    while new := {p for p, (q, _) in running.items() if q in found and p not in found}:
        found |= new
    return {p: running[p] for p in found - {pid}}


def builds_below(pid: int) -> dict[int, int]:
    """Return the processes of builds that a process's Ray workers run, with these workers."""
    running = below(pid)
    found = {p: parent for p, (parent, command) in running.items() if BUILD in command}
    return {p: parent for p, parent in found.items() if parent not in found}  # no forks of them


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until something holds, and return it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return found


def begun(driver: subprocess.Popen[str], count: int) -> dict[int, int]:
    """Wait until builds run; return their processes and those of the workers."""

    def found() -> dict[int, int]:
        assert driver.poll() is None, driver.communicate()
        running = builds_below(driver.pid)
        return running if len(running) >= count else {}

    return dict(until(found))


@pytest.fixture
def start(small_project: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin to build on Ray, in a process group of its own."""
    started = []

    def begin(*more: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                small_project.command(*RAY, *more),
                cwd=small_project.folder,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_ray_left() -> Iterator[None]:
    """Nothing of Ray's is in the temporary folder afterwards that was not before."""
    before = set(Path("/tmp").glob("qcompile-ray-*"))
    yield
    assert set(Path("/tmp").glob("qcompile-ray-*")) <= before


@pytest.fixture
def clean(small_project: Any) -> Mapping[str, bytes]:
    """What a local build gives; it is removed again."""
    small_project.run("build", "--jobs", "2")
    found: Mapping[str, bytes] = small_project.content()
    for name in found:
        if name == "qcompile.lock" or name.startswith("build/"):
            (small_project.folder / name).unlink()
    subprocess.run(["rm", "-rf", "build"], cwd=small_project.folder, check=True)
    return found


def gone(pids: Any) -> bool:
    return not set(pids) & set(processes())


def test_a_killed_worker(
    small_project: Any, clean: Any, start: Callable[..., Any], no_ray_left: None
) -> None:
    driver = start()
    build, worker = min(begun(driver, 2).items())
    time.sleep(1.5)  # until it is heard that they began
    everything = below(driver.pid)
    os.kill(worker, signal.SIGKILL)
    os.kill(build, signal.SIGKILL)
    _, stderr = driver.communicate()
    assert driver.returncode == 0, stderr
    assert stderr.count("note: its worker was lost: it begins anew") == 1
    assert small_project.content() == clean
    until(lambda: gone(everything), 20)


def test_a_killed_build_begins_anew(
    small_project: Any, clean: Any, start: Callable[..., Any]
) -> None:
    driver = start("--json")
    os.kill(min(begun(driver, 1)), signal.SIGKILL)
    _, stderr = driver.communicate()
    assert (driver.returncode, stderr) == (0, "")
    assert small_project.content() == clean


def test_a_build_whose_worker_is_lost_ends_by_itself(start: Callable[..., Any]) -> None:
    driver = start()
    build, worker = min(begun(driver, 2).items())
    os.kill(worker, signal.SIGKILL)
    until(lambda: gone([build]), 20)


def test_ctrl_c(small_project: Any, start: Callable[..., Any], no_ray_left: None) -> None:
    driver = start()
    begun(driver, 2)
    everything = below(driver.pid)
    os.killpg(driver.pid, signal.SIGINT)
    stdout, stderr = driver.communicate()
    assert driver.returncode == 2, stderr
    assert stdout.count("stopped") == 2
    assert stderr.endswith(
        "error: interrupted: 0 of 2 bundles are finished; the next build goes on with the other 2\n"
    )
    assert not (small_project.folder / "build").exists()
    until(lambda: gone(everything), 20)


def test_kill_9_of_the_parent_leaves_no_process(
    small_project: Any, clean: Any, start: Callable[..., Any], no_ray_left: None
) -> None:
    driver = start()
    begun(driver, 2)
    everything = below(driver.pid)
    driver.kill()
    until(lambda: gone(everything), 30)
    small_project.run("build", "--jobs", "2")
    assert small_project.content() == clean


def test_results_are_those_of_local_builds(
    first_build: Any, tmp_path: Path, no_ray_left: None
) -> None:
    done, rows = first_build
    project = type(done)(Path(shutil.copytree(done.folder, tmp_path / "copy")))
    shutil.rmtree(project.folder / "build")
    (project.folder / "qcompile.lock").unlink()
    found = project.results(*RAY, code=2)
    for name, row in rows.items():
        error = row["error"].replace(str(done.folder), str(project.folder))
        assert found[name] | {"seconds": 0} == row | {"seconds": 0, "error": error}
    assert project.content() == done.content()


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster of a head without CPUs and two more machines, as Ray plays them on this one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    size = {"object_store_memory": 80 << 20, "include_dashboard": False}
    with TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        (Path(folder) / "ray").mkdir()
        cluster = Cluster(True, head_node_args={"num_cpus": 0, **size})
        nodes = [cluster.add_node(num_cpus=1, **size) for _ in range(2)]
        yield cluster, nodes
        cluster.shutdown()


def test_a_machine_that_is_lost(
    small_project: Any, clean: Any, machines: Any, start: Callable[..., Any]
) -> None:
    cluster, (_, lost) = machines
    driver = start("--ray-address", cluster.address)
    (raylet,) = (p.process.pid for p in lost.all_processes["raylet"])

    def builds() -> dict[int, int]:
        assert driver.poll() is None, driver.communicate()
        return builds_below(raylet)

    (build,) = until(builds)
    time.sleep(1.5)  # until it is heard that it began
    for pid in (raylet, build, *below(raylet)):
        os.kill(pid, signal.SIGKILL)
    _, stderr = driver.communicate()
    assert driver.returncode == 0, stderr
    assert stderr.count("note: its worker was lost: it begins anew") == 1
    assert small_project.content() == clean
