"""A package that is damaged or hostile gives one sentence; no traceback, no hang, no huge allocation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import QCompileError
from qcompile.targets.coreml.reference import control
from qcompile.targets.coreml.reference.errors import PackageError
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
Change = Callable[[Any], None]


def refused(package: Path) -> str:
    """Return the message, one line."""
    with pytest.raises(PackageError) as caught:
        read_package(package)
    message = str(caught.value)
    assert "\n" not in message
    return message


def manifest(package: Path, path: object) -> None:
    """Let the manifest name another root model."""
    entries = {"a": {"path": path}}
    text = json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": entries})
    (package / "Manifest.json").write_text(text)


def test_the_package_is_sound(small: Path) -> None:
    found = Interpreter(read_package(small)).run({"x": torch.ones(1, 3, 6, 6)})
    assert [v.shape for v in found.values()] == [(1, 20)]


def test_missing_folder_and_empty_folder(tmp_path: Path) -> None:
    assert "has no Manifest.json" in refused(tmp_path / "none.mlpackage")
    assert "has no Manifest.json" in refused(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "1", "null", "{}", '"x"', "[" * 100_000, '{"a":' * 100_000, "1" * 100_000,
        '{"rootModelIdentifier": "a"}', '{"rootModelIdentifier": [], "itemInfoEntries": {}}',
        '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {}}}',
    ],
)  # fmt: skip
def test_manifest_that_names_no_model(broken: Path, text: str) -> None:
    (broken / "Manifest.json").write_text(text)
    assert "names no root model" in refused(broken)


def test_manifest_that_is_no_text(broken: Path) -> None:
    (broken / "Manifest.json").write_bytes(b"\xff\xfe\x00")
    assert "names no root model" in refused(broken)
    (broken / "Manifest.json").write_bytes(b" " * ((1 << 20) + 1))
    assert "larger than 1 MiB" in refused(broken)
    (broken / "Manifest.json").unlink()
    (broken / "Manifest.json").mkdir()
    assert "has no Manifest.json" in refused(broken)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../../../etc/passwd", "points outside"),
        ("/etc/passwd", "points outside"),
        ("com.apple.CoreML/../../x", "points outside"),
        ("", "points outside"),
        (".", "points outside"),
        ("com.apple.CoreML", "lacks the file"),
        ("nothing", "lacks the file"),
        ("a\0b", "cannot be"),
        ("a" * 100_000, "cannot be"),
        ("\ud800", "'\\ud800'"),
        (["x"], "names no file"),
        (7, "names no file"),
    ],
)
def test_path_of_the_model(broken: Path, path: object, message: str) -> None:
    manifest(broken, path)
    assert message in refused(broken)


@pytest.mark.parametrize("file", [MODEL, WEIGHTS])
def test_links_must_stay_in_the_package(broken: Path, tmp_path: Path, file: str) -> None:
    inside = (broken / file).rename(broken / "moved")
    (broken / file).symlink_to(inside)
    read_package(broken)
    outside = inside.rename(tmp_path / "outside")
    (broken / file).unlink()
    (broken / file).symlink_to(outside)
    assert "is a link that leaves the package" in refused(broken)
    (broken / file).unlink()
    (broken / file).symlink_to(broken / file)
    assert "cannot be" in refused(broken)


def test_folder_of_weights_that_is_a_link(broken: Path, tmp_path: Path) -> None:
    folder = (broken / WEIGHTS).parent
    moved = folder.rename(tmp_path / "weights")
    folder.symlink_to(moved)
    assert "is a link that leaves the package" in refused(broken)


def test_model_cut_off(broken: Path) -> None:
    whole = (broken / MODEL).read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), 97)]:
        (broken / MODEL).write_bytes(whole[:length])
        with pytest.raises(QCompileError):
            read_package(broken)


def test_model_too_large(broken: Path) -> None:
    with (broken / MODEL).open("r+b") as file:
        file.truncate((256 << 20) + 1)
    assert "larger than 256 MiB" in refused(broken)


def test_missing_model_and_missing_weights(broken: Path) -> None:
    (broken / WEIGHTS).unlink()
    assert "lacks the file 'weights/weight.bin'" in refused(broken)
    (broken / MODEL).unlink()
    assert "lacks the file 'com.apple.CoreML/model.mlmodel'" in refused(broken)


@pytest.mark.parametrize(
    "kind", ["neuralNetwork", "pipeline", "pipelineClassifier", "glmRegressor"]
)
def test_other_models(broken: Path, edit: Callable[[Path, Change], Path], kind: str) -> None:
    edit(broken, lambda model: getattr(model, kind).SetInParent())
    assert f"holds a {kind}, not an ML Program" in refused(broken)


def test_no_model_at_all(broken: Path, edit: Callable[[Path, Change], Path]) -> None:
    edit(broken, lambda model: model.ClearField("mlProgram"))
    assert "holds no model" in refused(broken)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weight.bin", "not in its package"),
        ("/etc/passwd", "not in its package"),
        ("@model_path/../../../x", "points outside"),
        ("@model_path//etc/passwd", "points outside"),
        ("@model_path/", "points outside"),
        ("@model_path/other.bin", "lacks the file"),
        ("@model_path/model.mlmodel", "is no blob file"),
    ],
)
def test_names_of_weight_files(
    broken: Path, edit: Callable[[Path, Change], Path], name: str, message: str
) -> None:
    def change(model: Any) -> None:
        (function,) = model.mlProgram.functions.values()
        (block,) = function.block_specializations.values()
        for operation in block.operations:
            if operation.type == "const":
                constant = operation.attributes["val"]
                if constant.WhichOneof("value") == "blobFileValue":
                    constant.blobFileValue.fileName = name

    assert message in refused(edit(broken, change))


def runs_or_refuses(package: Path) -> None:
    """Read and run a package; anything but a result or one sentence fails the test."""
    message = ""
    try:
        Interpreter(read_package(package)).run({"x": torch.ones(1, 3, 6, 6)})
    except QCompileError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 5000


edits = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.sampled_from(["set", "flip", "cut", "drop", "insert"]),
              st.integers(0, 255)),
    min_size=1, max_size=4,
)  # fmt: skip


def damaged(data: bytes, changes: list[tuple[int, str, int]]) -> bytes:
    """Return data after some changes of single bytes."""
    found = bytearray(data)
    for place, kind, byte in changes:
        at = place % max(1, len(found))
        if kind == "set" and found:
            found[at] = byte
        elif kind == "flip" and found:
            found[at] ^= 1 << byte % 8
        elif kind == "cut":
            del found[at:]
        elif kind == "drop":
            del found[at : at + 1 + byte % 8]
        else:
            found[at:at] = bytes([byte])
    return bytes(found)


@pytest.mark.parametrize("file", [MODEL, WEIGHTS, "Manifest.json"])
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=st.lists(edits, min_size=8, max_size=8))
def test_damaged_bytes(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, rounds: list[Any]
) -> None:
    monkeypatch.setattr(control, "MAX_WORK", 1000)
    copy = tmp_path / "damaged.mlpackage"
    if not copy.exists():
        shutil.copytree(small, copy)
    for changes in rounds:
        (copy / file).write_bytes(damaged((small / file).read_bytes(), changes))
        runs_or_refuses(copy)
