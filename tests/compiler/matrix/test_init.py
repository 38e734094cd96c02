"""``qcompile init``, ``check`` and ``schema``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from qcompile.compiler.cli import cli
from qcompile.compiler.matrix.read import read

Run = Callable[..., Result]


def test_init_from_flags(here: Path, run: Run) -> None:
    (here / "my device.toml").write_bytes(
        (Path(__file__).parents[3] / "targets/devices/x86-avx2.toml").read_bytes()
    )
    (here / "down").mkdir()
    arguments = [
        "tiny.py",
        "-t",
        "apple-m2",
        "-t",
        "host",
        "-p",
        "int8",
        "--min-sqnr",
        "20",
        "--max-size",
        "1MB",
    ]
    result = run("init", *arguments, "--calibrate", "random", "-c", "down/q.toml")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "down/q.toml: 2 builds; `qcompile check` prints the plan\n"
    found = read(here / "down/q.toml").cells
    assert [cell.name for cell in found] == ["tiny-apple-m2-int8", "tiny-host-int8"]
    assert found[0].path == "../tiny.py"
    assert found[0].flags == {
        "target": "apple-m2", "precision": "int8", "min_sqnr": 20.0, "max_size": 1_000_000,
        "calibrate": "random",
    }  # fmt: skip


def test_init_asks(here: Path) -> None:
    result = CliRunner().invoke(cli, ["init"], input="tiny.py\nhost apple-m2\n")
    assert result.exit_code == 0, result.stderr
    assert [cell.name for cell in read(here / "qcompile.toml").cells] == [
        "tiny-host",
        "tiny-apple-m2",
    ]


def test_init_of_models_of_one_name(here: Path, run: Run) -> None:
    (here / "other").mkdir()
    (here / "other" / "tiny.py").touch()
    assert run("init", "tiny.py", "other/tiny.py", "-t", "host").exit_code == 0
    assert [cell.model for cell in read(here / "qcompile.toml").cells] == ["tiny", "tiny-2"]


def test_init_replaces_nothing(here: Path, refuses: Callable[..., str]) -> None:
    (here / "qcompile.toml").write_text("mine")
    said = refuses("init", "tiny.py", "-t", "host")
    assert said == "qcompile.toml exists and is not replaced: edit it, or give another -c"


def test_init_with_nobody_to_ask(here: Path, run: Run) -> None:
    result = run("init")
    assert result.exit_code == 2
    assert (
        "Missing MODEL or --target, and nobody answered; see `qcompile init --help`"
        in result.stderr
    )
    assert sorted(p.name for p in here.iterdir()) == ["tiny.py"]


def test_init_writes_nothing_that_is_wrong(here: Path, run: Run) -> None:
    result = run("init", "tinny.py", "-t", "hosst")
    assert result.exit_code == 2
    assert result.stderr.count("error: qcompile.toml:") == 2
    assert sorted(p.name for p in here.iterdir()) == ["tiny.py"]


def test_schema(run: Run) -> None:
    found = json.loads(run("schema").stdout)
    assert set(found["properties"]) == {"output", "defaults", "models", "targets", "matrix"}


def test_check_says_what_a_single_dry_run_says(project: Any, run: Run) -> None:
    stdout, stderr = project.run("check", code=2)
    assert stderr.startswith(
        f"error: {project.broken}: model() of models/broken.py fails: RuntimeError: no"
    )
    assert "up to date" in stdout
    assert "never built" in stdout
    stdout, _ = project.run("check", "--json", "--only", "good")
    rows = {row["name"]: row for row in json.loads(stdout)["builds"]}
    text = run(
        "models/good.py", "-t", "x86-avx512-vnni", "-p", "int8", "--dry-run", "--json"
    ).stdout
    single = json.loads(text[text.index("{") :])  # the model file prints, too
    for key in ("artifact_bytes", "peak_ram_bytes", "format", "precision"):
        assert rows[project.good][key] == single[key]


def test_check_says_how_long_builds_took(first_build: tuple[Any, dict[str, Any]]) -> None:
    project, built = first_build
    stdout, _ = project.run("check", "--json", "--only", "good")
    seconds = {row["name"]: row["seconds"] for row in json.loads(stdout)["builds"]}
    assert seconds == {project.good: built[project.good]["seconds"], project.refused: None}
    shown, _ = project.run("check", "--only", "good")
    assert f"{seconds[project.good]:.1f} s" in shown
    assert "token" not in shown


def test_check_of_a_budget_and_of_words_that_do_not_fit(project: Any) -> None:
    toml = project.folder / "qcompile.toml"
    toml.write_text(toml.read_text().replace("min-sqnr = 500", 'max-size = "1KiB"'))
    stdout, _ = project.run("check", "--json", "--only", "good")
    row = next(r for r in json.loads(stdout)["builds"] if r["name"] == project.refused)
    assert (row["max_size"], row["artifact_bytes"]) == (1024, None)
    toml.write_text(toml.read_text().replace('"int8", "fp16"]', '"int9", "fp16"]'))
    _, stderr = project.run("check", "--only", "good", code=2)
    assert "x86-avx512-vnni has no precision 'int9' in onnx; it has: int8" in stderr
