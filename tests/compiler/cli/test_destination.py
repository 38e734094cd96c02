"""Where a bundle is written: refusals, gates, and builds that end in the middle."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from qcompile.compiler.driver import write

Refuses = Callable[..., str]
BUILD = ("tiny.py", "--target", "x86-avx512-vnni")
SLOW = """

_fast = calibration

def calibration():
    import time
    time.sleep(60)
    return _fast()
"""


def digests(folder: Path) -> dict[str, str]:
    return {name: info.sha256 for name, info in write.file_table(folder).items()}


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if ".tmp-" in p.name]


def test_an_output_that_exists(here: Path, refuses: Refuses) -> None:
    (here / "tiny.qc").mkdir()
    assert refuses(*BUILD) == "tiny.qc exists; give --force to replace it, or another -o"
    message = refuses(*BUILD, "--force")
    assert message == "tiny.qc exists and is no bundle; it is not replaced: give another -o"
    assert "tiny.py exists" in refuses(*BUILD, "-o", "tiny.py")
    assert "tiny.py exists and is no bundle" in refuses(*BUILD, "-o", "tiny.py", "--force")
    (here / "link.qc").symlink_to(here / "tiny.qc")
    assert "link.qc is a link" in refuses(*BUILD, "-o", "link.qc", "--force")


def test_an_output_that_another_process_makes_meanwhile(
    here: Path, bundle: Path, run: Callable[..., Result]
) -> None:
    other = (
        f"\n\nimport shutil\n\n\ndef calibration():\n    shutil.copytree({str(bundle)!r}, 'x.qc')\n"
    )
    model = (here / "tiny.py").read_text()
    (here / "tiny.py").write_text(f"{model}{other}    return {{'input': images(32, 2)}}\n")
    result = run(*BUILD, "-o", "x.qc")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "error: x.qc was made by another process meanwhile; give --force to replace it, or another -o\n"
    )
    assert digests(here / "x.qc") == digests(bundle)
    assert leftovers(here) == []


@pytest.mark.slow
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_two_builds_of_one_bundle_at_once(here: Path, bundle: Path, force: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "qcompile", *BUILD, "-o", "x.qc", *force]
    both = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in both]
    codes = sorted(process.returncode for process in both)
    assert codes == [0, 0] if force else codes in ([0, 2], [0, 0])  # of which one may begin later
    assert not any("defect" in text or "Traceback" in text for text in said)
    assert digests(here / "x.qc") == digests(bundle)
    assert leftovers(here) == []


def test_an_output_that_cannot_be_made(
    here: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refuses(*BUILD, "-o", "tiny.py/deep/x.qc")
    assert (
        message == f"{here / 'tiny.py'} is a file, so no folder can be made in it; give another -o"
    )
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert refuses(*BUILD, "-o", "x.qc") == f"{here} is not writable; give another -o"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses(
    here: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(write, "write_runtime", fail)
    message = refuses(*BUILD, "-o", "new/deep/x.qc")
    assert message == (
        f"the bundle cannot be written to {here / 'new/deep'}: {os.strerror(code)}; "
        "nothing was changed there"
    )


@pytest.mark.slow
def test_a_full_disk(here: Path, bundle: Path) -> None:
    """A limit on the size of files stands for the disk; the old bundle stays whole."""
    before = digests(bundle)
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from qcompile.compiler.cli import main; main()"
    )
    command = [sys.executable, "-c", program, *BUILD, "-o", "copy.qc", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "copy.qc" not in done.stderr
    assert "File too large; nothing was changed there" in done.stderr
    assert digests(bundle) == before
    assert leftovers(here) == []


def test_a_failed_gate(here: Path, bundle: Path, run: Callable) -> None:
    before = digests(bundle)
    arguments = [*BUILD, "-o", "copy.qc", "--force", "--min-sqnr", "200", "--max-drop", "-100"]
    result = run(*arguments)
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert "the artifact and PyTorch: " in result.stderr
    assert " dB, the limit is 200 dB" in result.stderr
    assert "top1 fell by " in result.stderr
    assert ", the limit is -100" in result.stderr
    assert "kept as copy.qc.rejected" in result.stderr
    assert digests(bundle) == before
    assert leftovers(here) == []
    assert run("verify", "copy.qc").exit_code == 0
    rejected = run("verify", "copy.qc.rejected", "--json")
    assert rejected.exit_code == 1
    failed = [c["check"] for c in json.loads(rejected.stdout)["checks"] if not c["passed"]]
    assert failed == ["gate min-sqnr at build", "gate max-drop at build"]

    data = json.loads(run(*arguments, "--json").stdout)  # replaces the rejected one
    assert data["exit_code"] == 1
    assert data["bundle"] == "copy.qc.rejected"
    assert {g["gate"] for g in data["gates"] if not g["passed"]} == {"min-sqnr", "max-drop"}


@pytest.fixture
def start(here: Path) -> Callable[[], subprocess.Popen]:
    """Start a build over ``copy.qc`` that stays in calibration(); return once it is there."""

    def popen() -> subprocess.Popen:
        text = (here / "tiny.py").read_text()
        (here / "slow.py").write_text(text + SLOW)
        command = [sys.executable, "-m", "qcompile", "slow.py", *BUILD[1:], "-o", "copy.qc"]
        process = subprocess.Popen([*command, "--force"], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not leftovers(here):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        time.sleep(0.2)
        return process

    return popen


def test_an_interrupt(here: Path, bundle: Path, start: Callable[[], subprocess.Popen]) -> None:
    before = digests(bundle)
    process = start()
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr == "error: interrupted; no bundle was written or changed\n"
    assert digests(bundle) == before
    assert leftovers(here) == []


def test_a_kill(
    here: Path, bundle: Path, start: Callable[[], subprocess.Popen], run: Callable
) -> None:
    before = digests(bundle)
    process = start()
    process.kill()
    process.communicate(timeout=60)
    assert digests(bundle) == before
    assert run("verify", "copy.qc").exit_code == 0
    assert len(leftovers(here)) == 1
    assert run(*BUILD, "-o", "copy.qc", "--force").exit_code == 0
    assert leftovers(here) == []
    assert run("verify", "copy.qc").exit_code == 0
