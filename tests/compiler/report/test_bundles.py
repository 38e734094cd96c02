"""What a report says is what the manifest and the vectors hold."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.compiler.report.bundles import open_entries, open_entry
from qcompile.runtime.errors import BundleError
from qcompile.runtime.vectors import read_arrays

Variant = Callable[..., Path]


def test_layers_are_the_manifests(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    entry = open_entry(built, "tiny")
    assert len(entry.layers) == len(manifest["layers"]) == 2
    for layer, row in zip(entry.layers, manifest["layers"], strict=True):
        assert (layer.name, layer.op, layer.format) == (row["name"], row["op"], row["weight"])
        assert (layer.bytes, layer.parameters) == (row["bytes"], row["parameters"])
        assert layer.bits == pytest.approx(8 * row["bytes"] / row["parameters"])
        assert (layer.weight_db, layer.output_db) == (row["weight_sqnr_db"], row["output_sqnr_db"])
    assert entry.bytes == (built / "model.onnx").stat().st_size
    assert {v.name for v in entry.values} == {row["name"] for row in manifest["parity"]["engine"]}
    (output,) = entry.outputs
    for kind, found in output.sqnr_db.items():
        assert found == manifest["parity"][kind][output.name]["sqnr_db"]
    assert entry.total_db == manifest["parity"]["total"]["output"]["sqnr_db"]


def test_the_reference_is_what_pytorch_gives(built: Path) -> None:
    model = runpy.run_path(str(built.parent / "tiny.py"))["model"]()
    images = torch.from_numpy(read_arrays(built / "vectors/inputs.npz")["input"])
    with torch.no_grad():
        expected = model(images).numpy()
    found = read_arrays(built / "vectors/reference.npz")["output"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    entry = open_entry(built, "tiny")
    outputs = read_arrays(built / "vectors/outputs.npz")["output"]
    for row in entry.samples.predictions:
        best = int(expected[row.sample].argmax())
        assert row.expected == f"class {best}"
        assert row.expected_value == pytest.approx(expected[row.sample, best])
        best = int(outputs[row.sample].argmax())
        assert (row.found, row.found_value) == (f"class {best}", outputs[row.sample, best])
    assert len(entry.samples.predictions) == len(entry.samples.pictures) == 8
    (errors,) = entry.samples.errors
    assert errors.agreement == (expected.argmax(1) == outputs.argmax(1)).mean()
    assert sum(errors.counts) == outputs.size
    largest = np.abs(outputs - found).max()
    assert (-errors.edges[0], errors.edges[-1]) == pytest.approx((largest, largest))


def test_classes_have_the_models_names(variant: Variant) -> None:
    labels = ["cat", "dog", "<b>", "fish"]
    folder = variant("a.qc", lambda m: m["interface"].update(labels=labels))
    rows = open_entry(folder, "a").samples.predictions
    assert rows
    assert {row.expected for row in rows} | {row.found for row in rows} <= set(labels)


def test_without_a_reference_it_says_so(variant: Variant) -> None:
    folder = variant("a.qc", lambda m: m["files"].pop("vectors/reference.npz"))
    samples = open_entry(folder, "a").samples
    assert samples.predictions == ()
    assert samples.why == "the bundle has no vectors/reference.npz"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("1.25 ms a token, the limit is 2", "ms a token"),
        ("1.25 ms a token, bytes over bandwidth, the limit is 2", None),
        (
            "1.25 ms a call of one sample on this machine, onnxruntime 1.31.1, the limit is 2",
            "ms a call",
        ),
    ],
)
def test_only_measured_latencies_are_shown(
    variant: Variant, message: str, shown: str | None
) -> None:
    gate = {"gate": "max-latency", "limit": 2, "measured": 1.25, "passed": True}
    folder = variant("a.qc", lambda m: m["gates"].append({**gate, "message": message}))
    found = open_entry(folder, "a").latency
    assert (found and (found.ms, found.unit)) == (shown and (1.25, shown))


def test_names_are_short_and_differ(variant: Variant) -> None:
    folders = [variant(n) for n in ("one/x.qc", "two/x.qc", "one/y.qc", "one/y.qc.rejected")]
    assert [e.label for e in open_entries(folders[:1])] == ["x"]
    assert [e.label for e in open_entries(folders[:3])] == ["one/x", "one/y", "two/x"]
    assert [e.label for e in open_entries([Path("two"), Path("one/x.qc")])] == ["one/x", "two/x"]
    assert [e.label for e in open_entries(folders[2:])] == ["y.qc", "y.qc.rejected"]
    variant("one/.z.qc.tmp-1")
    assert len(open_entries([Path("one")])) == 3
    with pytest.raises(BundleError, match=r"given twice: one/x\.qc; name each bundle once"):
        open_entries([Path("one"), Path("one/x.qc")])
    Path("empty").mkdir()
    with pytest.raises(BundleError, match="empty is no bundle and holds none"):
        open_entries([Path("empty")])


def test_other_schemas(variant: Variant, refuses: Callable[..., str]) -> None:
    def older(manifest: dict[str, Any]) -> None:
        manifest["schema"] = 1
        for name in ("interface", "notes", "foldings", "plan"):
            del manifest[name]
        for row in manifest["layers"]:
            del row["note"], row["tokens"]

    entry = open_entry(variant("old.qc", older), "old")
    assert [layer.note for layer in entry.layers] == ["", ""]
    assert entry.planned == entry.notes == ()
    variant("a.qc")
    variant("future/a.qc", lambda m: m.update(schema=99))
    message = refuses("report", "a.qc", "--baseline", "future", "-o", "r.html")
    assert message.startswith("future/a.qc/manifest.json has schema 99; this qcompile reads up to")


DAMAGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("'bytes'", lambda m: m["layers"][0].pop("bytes")),
    ("'12' is no count", lambda m: m["layers"][0].update(bytes="12")),
    ("True is no number", lambda m: m["layers"][0].update(weight_sqnr_db=True)),
    ("nan is no number", lambda m: m["layers"][0].update(output_sqnr_db=float("nan"))),
    ("7 is no text", lambda m: m["layers"][0].update(name=7)),
    ("-3 is no count", lambda m: m["sizes"].update(artifact_bytes=-3)),
    ("inf is no number", lambda m: m["quality"]["top1"].update(after=float("inf"))),
    ("'str' object", lambda m: m["parity"].update(engine="x")),
    ("string indices", lambda m: m["gates"].append("x")),
    ("'total'", lambda m: m["parity"].update(export={})),
]


@pytest.mark.parametrize(("reason", "edit"), DAMAGES)
def test_a_damaged_manifest(
    variant: Variant, refuses: Callable[..., str], reason: str, edit: Callable[..., Any]
) -> None:
    variant("bad.qc", edit)
    variant("good.qc")
    for arguments in (
        ("report", "good.qc", "bad.qc", "-o", "r.html"),
        ("report", "good.qc", "--baseline", "bad.qc", "-o", "r.html"),
        ("diff", "good.qc", "bad.qc"),
    ):
        message = refuses(*arguments)
        assert message.startswith("bad.qc/manifest.json is damaged (")
        assert message.endswith("); build the bundle again")
