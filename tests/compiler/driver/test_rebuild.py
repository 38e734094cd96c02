"""Bundles that are made again from their manifests."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from qcompile.compiler.driver.rebuild import flags
from qcompile.compiler.ir.errors import TargetError
from qcompile.runtime.manifest import Manifest, read

Run = Callable[..., Result]


@pytest.fixture
def manifest(built: Path) -> Manifest:
    return read(built)


def test_every_byte(built: Path, run: Run) -> None:
    result = run("rebuild", built, "--model", built.parent / "tiny.py")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{built}: made again, and every byte is the same\n"


def test_another_model_is_said(built: Path, here: Path, run: Run) -> None:
    model = here / "tiny.py"
    text = model.read_text()
    assert "manual_seed(0)" in text
    model.write_text(text.replace("manual_seed(0)", "manual_seed(1)", 1))
    result = run("rebuild", built, "--model", model, "--json")
    assert result.exit_code == 1
    found = {row["what"] for row in json.loads(result.stdout)["differences"]}
    assert {"model", "model.onnx", "manifest.json", "vectors/outputs.npz"} <= found
    assert "run.pyz" not in found


def test_a_tool_of_another_version_is_said(bundle: Path, built: Path, run: Run) -> None:
    file = bundle / "manifest.json"
    data = json.loads(file.read_text())
    data["tools"]["torch"] = "2.12.0"
    file.write_text(json.dumps(data))
    result = run("rebuild", bundle, "--model", built.parent / "tiny.py", "--json")
    assert result.exit_code == 1
    rows = {row["what"]: row["before"] for row in json.loads(result.stdout)["differences"]}
    assert set(rows) == {"manifest.json", "torch"}
    assert rows["torch"] == "2.12.0"


def test_what_is_missing_is_named(manifest: Manifest) -> None:
    options = {
        **manifest.options,
        "target": "kiosk",
        "tune": 5,
        "imatrix": "m.gguf",
        "plan_file": "p.json",
    }
    lacking = dataclasses.replace(
        manifest, options=options, calibration={"source": "cal.npz", "samples": 8, "sha256": ""}
    )
    with pytest.raises(TargetError) as caught:
        flags(lacking, {"imatrix": "here/m.gguf"})
    assert str(caught.value) == (
        "the manifest of tiny does not hold all of its inputs: give --target for the device file kiosk.toml, "
        "--calibrate for cal.npz, --plan for p.json, --tune-database for the schedules of --tune 5"
    )


def test_options_of_a_budget(manifest: Manifest) -> None:
    options = {
        **manifest.options,
        "budget": {"max_size": 9},
        "plan_file": None,
        "tensor_types": ["a=b=int4"],
    }
    found = flags(dataclasses.replace(manifest, options=options), {})
    assert found["max_size"] == 9
    assert found["tensor_type"] == [("a=b", "int4")]
    assert "precision" not in found


def test_what_only_language_models_have(manifest: Manifest) -> None:
    options = {
        **manifest.options,
        "encoder": "ggml",
        "kv_type": "q8_0",
        "seq_len": 64,
        "budget": {},
    }
    found = flags(dataclasses.replace(manifest, options=options), {})
    assert (found["kv_type"], found["encoder"], found["seq_len"]) == ("q8_0", "ggml", 64)
    assert found["precision"] == "int8"


def test_a_damaged_bundle(bundle: Path, built: Path, refuses: Callable[..., str]) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    said = refuses("rebuild", bundle, "--model", built.parent / "tiny.py")
    assert "was changed after it was built" in said
