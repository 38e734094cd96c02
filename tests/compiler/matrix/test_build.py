"""A matrix from end to end: what is built, what is not, and that the bytes are those of single builds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

_IMPORTS = """
import sys
from qcompile.compiler.cli import main
try:
    main(["build", "--only", "good-x86-avx512-vnni-int8"])
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""


def test_what_fails_does_not_stop_the_others(first_build: Any) -> None:
    project, rows = first_build
    assert {name: row["result"] for name, row in rows.items()} == {
        project.good: "built", project.refused: "gate", project.broken: "failed",
    }  # fmt: skip
    assert rows[project.broken]["error"].startswith(
        "model() of models/broken.py fails: RuntimeError: no weights"
    )
    assert "the limit is 500 dB" in rows[project.refused]["error"]
    assert rows[project.refused]["bundle"] == f"build/{project.refused}.qc.rejected"
    folders = sorted(path.name for path in (project.folder / "build").iterdir())
    assert folders == [f"{project.refused}.qc.rejected", f"{project.good}.qc"]
    assert rows[project.good]["artifact_bytes"] == sum(
        f.stat().st_size for f in (project.folder / f"build/{project.good}.qc").glob("model.*")
    )


def test_bytes_are_those_of_a_single_build(project: Any, run: Callable[..., Result]) -> None:
    single = ("models/good.py", "--target", "x86-avx512-vnni", "-p", "int8", "-o", "single/x.qc")
    assert run(*single).exit_code == 0
    ours = {
        Path(*Path(n).parts[2:]): data
        for n, data in project.content(f"build/{project.good}.qc").items()
    }
    alone = {Path(*Path(n).parts[2:]): data for n, data in project.content("single/x.qc").items()}
    assert ours == alone
    assert len(ours) >= 5


def test_the_lock_says_what_was_read(first_build: Any) -> None:
    project, _ = first_build
    text = (project.folder / "qcompile.lock").read_text()
    builds = json.loads(text)["builds"]
    assert list(builds) == [project.good]
    data = [f"models/data/{i}.txt" for i in range(8)]
    assert list(builds[project.good]["files"]) == [
        "models/data/", *data, "models/good.py", "models/sizes.py", "models/weights.safetensors",
    ]  # fmt: skip
    assert builds[project.good]["options"] == {"precision": "int8", "target": "x86-avx512-vnni"}
    assert {"python", "torch", "onnxruntime", "qcompile sources"} <= set(
        builds[project.good]["tools"]
    )
    assert str(project.folder) not in text
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


def test_nothing_changed_in_another_folder(project: Any) -> None:
    before = project.content()
    rows = project.results("build", "--only", project.good)
    assert [row["result"] for row in rows.values()] == ["up to date"]
    assert rows[project.good]["artifact_bytes"] > 0
    assert project.content() == before


def test_nothing_changed_imports_no_torch(project: Any) -> None:
    command = [sys.executable, "-P", "-c", _IMPORTS]
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True)
    assert done.stdout.endswith("0 False\n"), done.stderr


def test_locked_makes_missing_bundles_the_same(project: Any) -> None:
    bundle = f"build/{project.good}.qc"
    before, lock = project.content(bundle), (project.folder / "qcompile.lock").read_bytes()
    (project.folder / bundle).rename(project.folder / "aside")
    rows = project.results("build", "--locked", "--only", project.good)
    assert rows[project.good]["result"] == "built"
    assert rows[project.good]["why"] == "its bundle is missing"
    assert project.content(bundle) == before
    assert (project.folder / "qcompile.lock").read_bytes() == lock


def test_locked_refuses_a_bundle_that_comes_out_otherwise(project: Any) -> None:
    file = project.folder / "qcompile.lock"
    data = json.loads(file.read_text())
    data["builds"][project.good]["bundle"] = "0" * 64
    file.write_text(json.dumps(data))
    rows = project.results("build", "--locked", "--only", "good-x86-avx512-vnni-int8", code=1)
    assert rows[project.good]["result"] == "gate"
    assert rows[project.good]["error"] == (
        f"build/{project.good}.qc is not the bundle that qcompile.lock pins"
    )


def test_an_edited_file_is_built_again(project: Any) -> None:
    (project.folder / "models/sizes.py").write_text("WIDTH = 3  # edited\n")
    first = project.results("build", "--only", project.good)[project.good]
    assert (first["result"], first["why"]) == ("built", "models/sizes.py changed")
    assert project.results("build", "--only", project.good)[project.good]["result"] == "up to date"


def test_an_input_that_changes_during_the_build_is_not_pinned(project: Any) -> None:
    model = project.folder / "models/good.py"
    model.write_text(
        model.read_text() + "\nTOUCHED = (HERE / 'sizes.py').write_text('WIDTH = 3  # later')\n"
    )
    row = project.results("build", "--only", project.good)[project.good]
    assert row["result"] == "built"
    assert row["error"] == "models/sizes.py changed during the build: build it again"
    assert json.loads((project.folder / "qcompile.lock").read_text())["builds"] == {}


def test_a_process_that_dies_is_one_failure(project: Any) -> None:
    (project.folder / "models/broken.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    row = project.results("build", "--only", "broken", code=2)[project.broken]
    assert row["result"] == "failed"
    assert row["error"].startswith("its process ended by SIGSEGV")


@pytest.mark.parametrize("file", ["manifest.json", "model.onnx"])
def test_a_spoiled_bundle_is_noticed(project: Any, file: str) -> None:
    with (project.folder / f"build/{project.good}.qc" / file).open("ab") as stream:
        stream.write(b" ")
    stdout, _ = project.run("check", "--only", project.good, "--json")
    why = json.loads(stdout)["builds"][0]["why"]
    assert why == ("its bundle is another one" if file == "manifest.json"
                   else "its bundle was changed: model.onnx")  # fmt: skip
