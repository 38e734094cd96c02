"""Bundles that qcompile must refuse in one sentence."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refuses = Callable[..., str]
Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def edit(bundle: Path) -> Callable[[Edit], None]:
    """Change the manifest as data."""

    def change(how: Edit) -> None:
        file = bundle / "manifest.json"
        data = json.loads(file.read_text())
        how(data)
        file.write_text(json.dumps(data))

    return change


@pytest.fixture
def verify(bundle: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Check the spoiled bundle with each verb that reads one."""
    monkeypatch.chdir(bundle.parent)

    def check() -> str:
        messages = {refuses(verb, "copy.qc") for verb in ("verify", "inspect", "bench")}
        assert len(messages) == 1
        return messages.pop()

    return check


def test_no_bundle(here: Path, refuses: Refuses) -> None:
    assert refuses("verify", "no.qc") == "no.qc is no bundle: it has no manifest.json"
    assert refuses("verify", "tiny.py") == "tiny.py is no bundle: it has no manifest.json"


@pytest.mark.parametrize("name", ["model.onnx", "run.pyz", "vectors/inputs.npz"])
def test_truncated_edited_missing(bundle: Path, verify: Callable[[], str], name: str) -> None:
    file = bundle / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    assert f"copy.qc was changed after it was built: {name} has {len(whole) - 7} bytes" in verify()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert f"{name} has another content (sha256)" in verify()
    file.unlink()
    assert f"{name} is missing" in verify()


def test_all_damage_is_told(bundle: Path, verify: Callable[[], str]) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "run.pyz").write_bytes(b"")
    message = verify()
    assert "model.onnx is missing; run.pyz has 0 bytes" in message


def test_a_newer_schema(edit: Callable[[Edit], None], verify: Callable[[], str]) -> None:
    edit(lambda m: m.update(schema=4, field_of_the_future=1))
    assert verify() == (
        "copy.qc/manifest.json has schema 4; this qcompile reads up to 3: update qcompile"
    )


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "..\\x", ""])
def test_paths_that_lead_out(
    edit: Callable[[Edit], None], verify: Callable[[], str], path: str
) -> None:
    edit(lambda m: m["files"].update({path: {"bytes": 1, "sha256": "0"}}))
    assert verify() == f"copy.qc/manifest.json points outside of its bundle: {path}".strip()


def test_an_artifact_that_leads_out(
    edit: Callable[[Edit], None], verify: Callable[[], str]
) -> None:
    edit(lambda m: m.update(artifact="../model.onnx"))
    assert "points outside of its bundle: ../model.onnx" in verify()
    edit(lambda m: m.update(artifact="other.onnx"))
    assert "names the artifact 'other.onnx' but does not list it" in verify()


def test_a_link_that_leads_out(bundle: Path, verify: Callable[[], str]) -> None:
    os.rename(bundle / "model.onnx", bundle.parent / "elsewhere.onnx")
    os.symlink(bundle.parent / "elsewhere.onnx", bundle / "model.onnx")
    assert "model.onnx is a link that leads out of it" in verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not a manifest"),
        (b"[]", "is not a manifest"),
        (b"[" * 100_000, "is not a manifest"),
        (b'{"schema": 1}', "has wrong or missing fields: activations, artifact"),
        (b'{"schema": "1"}', "has no schema version, but '1'"),
        (b"\xff\xfe\x00", "is not text"),
        (b"", "is not a manifest"),
    ],
)
def test_no_manifest(bundle: Path, verify: Callable[[], str], text: bytes, message: str) -> None:
    (bundle / "manifest.json").write_bytes(text)
    assert message in verify()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("files", []),
        ("files", {"model.onnx": {"bytes": "1", "sha256": "0"}}),
        ("inputs", [{"name": "input", "dtype": "object", "shape": [1]}]),
        ("inputs", [{"name": "input", "dtype": "float32", "shape": [-1]}]),
        ("inputs", [{"name": "input"}]),
        ("outputs", {}),
        ("engine", 3),
        ("parity", None),
        ("name", 7),
    ],
)
def test_fields_of_another_type(
    edit: Callable[[Edit], None], verify: Callable[[], str], field: str, value: object
) -> None:
    edit(lambda m: m.update({field: value}))
    assert "copy.qc/manifest.json is damaged (" in verify()


def test_a_manifest_that_is_too_large(bundle: Path, verify: Callable[[], str]) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    assert "is larger than 64 MiB: it is no manifest" in verify()


def test_an_unknown_engine(edit: Callable[[Edit], None], refuses: Refuses, bundle: Path,
                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(bundle.parent)
    for name in ("warp", "../x", ""):
        edit(lambda m, name=name: m["engine"].update(name=name))
        assert f"this runtime has no engine {name!r}" in refuses("verify", "copy.qc")
        assert f"this runtime has no engine {name!r}" in refuses("bench", "copy.qc")


def test_an_artifact_that_the_engine_refuses(
    bundle: Path, edit: Callable[[Edit], None], refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    monkeypatch.chdir(bundle.parent)
    (bundle / "model.onnx").write_bytes(b"nothing")
    info = {"bytes": 7, "sha256": hashlib.sha256(b"nothing").hexdigest()}
    edit(lambda m: m["files"].update({"model.onnx": info}))
    message = refuses("verify", "copy.qc")
    assert message.startswith("copy.qc/model.onnx: onnxruntime ")
    assert "refuses it" in message
