"""What pipelines run: the script, and that the Action and the GitLab template hand it all that it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "ci" / "build.sh"


def run_script(folder: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run it in a project, with ``qcompile`` of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {"QCOMPILE_CACHE_DIR": os.environ["QCOMPILE_CACHE_DIR"]}
    found = {k: v for k, v in os.environ.items() if not k.startswith("QCOMPILE_")} | kept
    return subprocess.run(
        [SCRIPT], cwd=folder, env={**found, "PATH": path, **given}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_good_builds_are_reported(small_project: Any, tmp_path: Path) -> None:
    summary = tmp_path / "summary"
    done = run_script(
        small_project.folder, QCOMPILE_ONLY="good-x86-avx512-vnni-fp32", GITHUB_STEP_SUMMARY=str(summary)
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = small_project.folder / "qcompile-report"
    assert {file.name for file in report.iterdir()} == {
        "findings.sarif", "junit.xml", "report.html", "summary.md",
    }  # fmt: skip
    suites = ET.parse(report / "junit.xml").getroot().iter("testsuite")
    assert [suite.get("failures") for suite in suites] == ["0"]
    assert summary.read_text() == (report / "summary.md").read_text()

    (small_project.folder / "models" / "sizes.py").write_text("WIDTH = 3  # as before\n")
    drifted = run_script(
        small_project.folder, QCOMPILE_ONLY="good-x86-avx512-vnni-fp32", QCOMPILE_LOCKED="true"
    )
    assert drifted.returncode == 2
    assert "models/sizes.py" in drifted.stderr


@pytest.mark.slow
def test_what_fails_is_told_of_and_reported(project: Any) -> None:
    """One build misses a gate, one cannot be made: the code of the worst, a report of the rest."""
    done = run_script(project.folder)

    assert done.returncode == 2
    suites = ET.parse(project.folder / "qcompile-report" / "junit.xml").getroot()
    assert sum(int(suite.get("failures", 0)) for suite in suites.iter("testsuite")) == 1


@pytest.mark.parametrize(
    "request_of", [{"GITHUB_EVENT_NAME": "pull_request"}, {"CI_MERGE_REQUEST_IID": "3"}]
)
def test_requests_only_read_a_remote_cache(tmp_path: Path, request_of: dict[str, str]) -> None:
    """A program in qcompile's place prints what it is given."""
    (tmp_path / "qcompile").write_text("#!/bin/sh\necho $@\n")
    (tmp_path / "qcompile").chmod(0o755)
    for given, only_read in (({}, False), (request_of, True)):
        place = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "QCOMPILE_REMOTE_CACHE": "memory://x"}
        command = [SCRIPT]
        done = subprocess.run(
            command, cwd=tmp_path, env=place | given, capture_output=True, text=True
        )
        assert ("--remote-cache-read-only" in done.stdout) == only_read
    without = subprocess.run(
        [SCRIPT],
        cwd=tmp_path,
        env={"PATH": place["PATH"]} | request_of,
        capture_output=True,
        text=True,
    )
    assert "--remote-cache-read-only" not in without.stdout


def test_without_a_file_there_is_no_report(tmp_path: Path) -> None:
    done = run_script(tmp_path)

    assert done.returncode == 2
    assert "qcompile.toml" in done.stderr
    assert "there is no bundle in build" in done.stderr


def test_pipelines_hand_over_what_the_script_takes() -> None:
    variables = set(re.findall(r"^#   (QCOMPILE_\w+)", SCRIPT.read_text(), re.MULTILINE))
    assert variables == set(re.findall(r"\$\{(QCOMPILE_\w+)", SCRIPT.read_text()))
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = action["runs"]["steps"]
    given = next(s["env"] for s in steps if s.get("name") == "Build and report")
    assert variables == {name for name in given if name.startswith("QCOMPILE_")}

    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == action["inputs"].keys()
    template = yaml.safe_load((ROOT / "ci" / "gitlab.yml").read_text())[".qcompile"]
    assert template["script"][-1].endswith("ci/build.sh")
