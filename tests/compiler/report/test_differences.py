"""``qcompile diff``: what differs is told, what is equal is not."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from click.testing import Result

from qcompile.compiler.report import runs
from qcompile.compiler.report.bundles import open_entry
from qcompile.compiler.report.differences import Difference
from qcompile.runtime.errors import MissingPackageError
from qcompile.runtime.vectors import read_arrays

Variant = Callable[..., Path]
Run = Callable[..., Result]


@pytest.fixture(scope="module")
def half(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with float activations."""
    from qcompile.compiler.cli import cli

    folder = tmp_path_factory.mktemp("half") / "tiny.qc"
    arguments = [str(built.parent / "tiny.py"), "--target", "x86-avx512-vnni", "-p", "w8a16"]
    cli([*arguments, "-o", str(folder)], standalone_mode=False)
    return folder


def between(before: Path, after: Path) -> Difference:
    return Difference(open_entry(before, "a"), open_entry(after, "b"))


def data_of(run: Run, *arguments: str | Path) -> dict[str, Any]:
    result = run("diff", *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_a_bundle_and_itself(variant: Variant, run: Run) -> None:
    one, two = variant("one.qc"), variant("two.qc")
    found = data_of(run, one, two)
    assert found["same"]
    assert (found["settings"], found["gates"], found["notes"]) == ([], [], [])
    assert all(figure["change"] == 0 for figure in found["figures"])
    assert all(layer["what"] == [] for layer in found["layers"])
    (output,) = found["outputs"]
    assert (output["sqnr_db"], output["largest"], output["agreement"]) == (None, 0, 1)
    assert "nothing differs that their manifests tell" in run("diff", one, two).stdout


def test_what_changed_in_each_layer(variant: Variant) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        first, second = manifest["layers"]
        first.update(weight="int4", bytes=first["bytes"] - 5)
        first["weight_sqnr_db"] -= 3
        second["weight_sqnr_db"] -= 0.05  # less than a table shows
        second["output_sqnr_db"] -= 9  # because of what comes before it
        manifest["layers"].append({**second, "name": "added", "bytes": 7})

    found = between(variant("a.qc"), variant("b.qc", edit))
    old = found.before.layers[0]
    rows = {row.name: row for row in found.layers}
    assert rows[old.name].what == ("format", "shrank", "worse")
    assert rows[old.name].formats == (old.format, "int4")
    assert (rows[old.name].bytes, rows[old.name].weight_db) == (-5, -3)
    assert rows["added"].what == ("new",)
    assert rows["added"].bytes == 7
    assert rows[found.before.layers[1].name].what == ()
    assert [row.name for row in found.changed] == [old.name, "added"]
    back = Difference(found.after, found.before)
    assert {row.name: row.what for row in back.changed} == {
        "added": ("gone",),
        old.name: ("format", "grew", "better"),
    }


def test_figures_options_tools_and_gates(variant: Variant) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["options"].update(rounding="nearest", new_option=[1, None])
        manifest["tools"]["torch"] = "9.9"
        manifest["sizes"]["artifact_bytes"] += 11
        manifest["parity"]["total"]["output"]["sqnr_db"] = None
        manifest["quality"]["top1"]["after"] += 1.5
        manifest["gates"][0]["passed"] = False

    found = between(variant("a.qc"), variant("b.qc", edit))
    rows = {row.name: (row.before, row.after) for row in found.settings}
    assert rows["option rounding"] == ("gptq", "nearest")
    assert rows["option new_option"] == (None, "[1, null]")
    assert rows["tool torch"] == (found.before.manifest.tools["torch"], "9.9")
    assert len(rows) == 3
    changes = {figure.name: figure.change for figure in found.figures}
    assert changes["artifact"] == 11
    assert changes["top1"] == pytest.approx(1.5)
    assert changes["SQNR of output"] is None  # equal has no decibels
    assert [(g.name, g.before, g.after) for g in found.gates] == [("export", "passed", "failed")]


def test_outputs_are_those_of_the_engine(built: Path, half: Path, run: Run) -> None:
    found = data_of(run, built, half)
    inputs = read_arrays(built / "vectors/inputs.npz")
    a, b = (
        onnxruntime.InferenceSession(folder / "model.onnx").run(None, inputs)[0].astype(np.float64)
        for folder in (built, half)
    )
    reference = read_arrays(built / "vectors/reference.npz")["output"].astype(np.float64)

    def decibels(right: Any, other: Any) -> float:
        return 10 * math.log10(np.square(right).sum() / np.square(right - other).sum())

    (row,) = found["outputs"]
    assert row["sqnr_db"] == pytest.approx(decibels(a, b), abs=0.5)
    assert row["largest"] == pytest.approx(np.abs(a - b).max(), rel=0.05)
    assert row["agreement"] == (a.argmax(1) == b.argmax(1)).mean()
    assert row["before_db"] == pytest.approx(decibels(reference, a), abs=0.5)
    assert row["after_db"] == pytest.approx(decibels(reference, b), abs=0.5)
    assert {"bundle precision", "option precision"} <= {s["name"] for s in found["settings"]}


def test_without_an_engine_the_builds_outputs_stand_in(
    variant: Variant, half: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(folder: Path) -> None:
        raise MissingPackageError("onnxruntime", "onnx")

    expected = data_of(run, variant("a.qc"), half)["outputs"][0]
    monkeypatch.setattr(runs, "open_session", missing)
    found = data_of(run, "a.qc", half)
    assert found["outputs"][0]["sqnr_db"] == pytest.approx(expected["sqnr_db"], abs=0.5)
    assert [note.split(":")[0] for note in found["notes"] if "calibrated" not in note] == [
        "a.qc was not run, but shows what its build kept",
        f"{half} was not run, but shows what its build kept",
    ]
    assert all("its engine is not installed (onnxruntime)" in n for n in found["notes"][-2:])
    spoiled = variant("c.qc")
    _other_vectors(spoiled)
    found = data_of(run, "a.qc", spoiled)
    assert found["outputs"] == []
    assert found["notes"][-1].startswith(
        "outputs are not compared: c.qc does not run here: its eng"
    )


def _other_vectors(folder: Path) -> None:
    file = folder / "vectors/inputs.npz"
    np.savez(file, input=np.zeros((16, 3, 8, 8), np.float32))
    data = json.loads((folder / "manifest.json").read_text())
    content = file.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    data["files"]["vectors/inputs.npz"] = {"bytes": len(content), "sha256": digest}
    (folder / "manifest.json").write_text(json.dumps(data))


def test_another_model(variant: Variant, run: Run) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        manifest["name"] = "other"
        manifest["model"]["sha256"] = "0"
        manifest["inputs"][0]["name"] = "image"
        manifest["layers"][1]["name"] = "head.weight"

    found = data_of(run, variant("a.qc"), variant("b.qc", edit))
    model, outputs = found["notes"]
    assert model == (
        "they were built from different models (tiny and other): 1 of 3 layers have the same name, "
        "and only those are compared"
    )
    assert outputs == (
        "outputs are not compared: inputs input: float32[?, 3, 8, 8] against "
        "inputs image: float32[?, 3, 8, 8]"
    )
    text = run("diff", "a.qc", "b.qc").stdout
    assert "head.weight" in text
    assert "note: they were built from different models" in text


def test_the_table_for_people(variant: Variant, run: Run) -> None:
    def edit(manifest: dict[str, Any]) -> None:
        for row in manifest["layers"]:
            row.update(weight="[bold]int4", bytes=row["bytes"] + 1000)
        manifest["tools"]["torch"] = "[/red]"

    arguments = (variant("[b]a.qc"), variant("b.qc", edit))
    result = run("diff", *arguments, "--limit", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("[b]a.qc and b.qc\n")
    assert result.stdout.count("-> [bold]int4  +1,000") == 1
    assert "2 of 2 layers changed; 1 more changed" in result.stdout
    assert "[/red]" in result.stdout
    assert run("diff", *arguments).stdout.count("-> [bold]int4") == 2


def test_bad_bundles(variant: Variant, refuses: Callable[..., str]) -> None:
    good = variant("good.qc")
    assert refuses("diff", good, "no.qc") == "no.qc is no bundle: it has no manifest.json"
    shutil.copytree(good, "cut.qc")
    Path("cut.qc/model.onnx").write_bytes(b"")
    assert "cut.qc was changed after it was built" in refuses("diff", "cut.qc", good)
    assert "Missing argument 'B'" in refuses("diff", good)
