"""However a build of a matrix ends, the temporary folder is as it was."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

_LITTER = "import os, tempfile, time\nopen(tempfile.mkdtemp() + '/x', 'w').close()\n"
_SLOW = f"{_LITTER}print('littered', flush=True)\ntime.sleep(60)\n"


@pytest.fixture
def temporary(project: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder of the processes that are started."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def wait_for_litter(temporary: Path) -> None:
    while not list(temporary.glob("qcompile-*/*/*/x")):
        time.sleep(0.02)


def test_a_process_that_dies(project: Any, temporary: Path) -> None:
    (project.folder / "models/broken.py").write_text(f"{_LITTER}os.kill(os.getpid(), 11)\n")
    project.run("build", "--only", "broken", code=2)
    assert os.listdir(temporary) == []


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 2), (signal.SIGKILL, -9)])
def test_an_interrupted_build(project: Any, temporary: Path, sign: int, code: int) -> None:
    (project.folder / "models/broken.py").write_text(_SLOW)
    command, null = project.command("build", "--only", "broken"), subprocess.DEVNULL
    with subprocess.Popen(command, cwd=project.folder, stdout=null, stderr=null) as process:
        wait_for_litter(temporary)
        process.send_signal(sign)
    assert process.returncode == code
    end = time.monotonic() + 20
    while os.listdir(temporary) and time.monotonic() < end:
        time.sleep(0.05)
    assert os.listdir(temporary) == []
