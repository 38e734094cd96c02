"""Builds of language models: what is stored, and what is said of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, dry_run
from qcompile.compiler.driver.check import verify
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.load import Source, load
from qcompile.targets.options import BlockOptions

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
Calibrated = Callable[..., Options]
DOWN = "model.layers.0.mlp.down_proj.weight"


def options(precision: str = "q4_k_m", **changes: Any) -> Options:
    return Options(target="gguf", precision=precision, **changes)


def types(folder: Path) -> dict[str, str]:
    found = gguf.GGUFReader(folder / "model.gguf").tensors
    return {tensor.name: tensor.tensor_type.name for tensor in found}


def test_a_bundle_is_verified_whole(language_bundle: Bundle) -> None:
    assert language_bundle.passed
    manifest = language_bundle.manifest
    names = {row["name"] for row in manifest.parity["engine"]}
    assert {"tokenizer", "logits in float32", "logits", "blk.0.ffn_down.weight"} <= names
    assert {r["rounding"] for r in manifest.layers} & {"gptq", "gptaq"}
    assert manifest.options["seq_len"] == 32
    assert manifest.calibration["samples"] == 20
    (said,) = [note for note in manifest.notes if note.startswith("text.txt: ")]
    assert "20 sequences of 32; the last" in said
    assert sorted(os.listdir(language_bundle.path.parent)) == ["tiny.qc"]
    assert all(check.passed for check in verify(language_bundle.path))


def test_the_plan_is_the_file(
    language_bundle: Bundle, tiny_source: Source, calibrated: Calibrated
) -> None:
    plan = dry_run(tiny_source, calibrated())
    assert plan.artifact_bytes == (language_bundle.path / "model.gguf").stat().st_size
    assert {row.name: row.format for row in plan.tensors} == types(language_bundle.path)
    assert plan.least_token_ms is None
    (odd,) = [row for row in plan.tensors if row.why]
    assert odd.name == "blk.0.ffn_down.weight"
    assert odd.why in language_bundle.manifest.notes
    assert "which takes rows in blocks of 256 and not of 288: " in odd.why
    assert odd.why.endswith("bytes more")


def test_the_time_of_a_token_is_modelled(tiny_source: Source, calibrated: Calibrated) -> None:
    """Of a tied table all is read; the memory of an M2 gives 100 GB a second."""
    plan = dry_run(tiny_source, calibrated(target="apple-m2", format="gguf"))
    read = sum(row.bytes for row in plan.tensors)
    assert plan.least_token_ms == pytest.approx(1e3 * read / 100e9)


@pytest.mark.usefixtures("unverified")
def test_what_is_said_before_the_work(
    tiny_source: Source, calibrated: Calibrated, tmp_path: Path
) -> None:
    def said(name: str, given: Options) -> list[str]:
        found: list[str] = []
        progress = Progress(note=found.append)
        built = build(tiny_source, tmp_path / name, given, progress=progress)
        assert set(found) <= set(built.manifest.notes)
        assert list(dry_run(tiny_source, given).notes) == found
        return found

    odd, bare = said("bare.qc", options())
    assert odd.startswith("blk.0.ffn_down.weight is stored as ")
    assert bare.startswith("without calibration data the errors of all inputs count alike in ")
    assert "Q4_K" in bare
    assert "give --calibrate FILE (.txt, .jsonl, .npz) or --imatrix FILE" in bare
    assert said("f16.qc", options("f16")) == [], "no weight is rounded to blocks"
    assert said("nearest.qc", calibrated(rounding="nearest")) == [odd]


def test_the_report_says_which_inputs_were_rescaled(language_bundle: Bundle) -> None:
    rows = {row["name"]: row for row in language_bundle.manifest.foldings}
    first = rows["model.layers.0.input_layernorm.weight"]
    assert first["layers"] == [f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv"]
    assert all(row["error"] == row["tried"].get(row["method"], 1.0) for row in rows.values())
    summary = dict(language_bundle.summary())
    kept = [row for row in rows.values() if row["method"] != "none"]
    assert ("rescaled inputs" in summary) is bool(kept)
    if kept:
        assert f"of {len(kept)} of {len(rows)} groups" in summary["rescaled inputs"]
    assert Bundle.open(language_bundle.path).manifest.foldings == language_bundle.manifest.foldings


@pytest.mark.parametrize("precision", ["f16", "bf16", "q8_0", "q2_k"])
def test_precisions(tiny_source: Source, tmp_path: Path, precision: str) -> None:
    built = build(tiny_source, tmp_path / "tiny.qc", options(precision))
    wanted = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q2_k": "Q2_K"}[precision]
    assert types(built.path)["blk.0.attn_q.weight"] == wanted
    assert types(built.path)["blk.0.attn_norm.weight"] == "F32"
    assert (
        dry_run(tiny_source, options(precision)).artifact_bytes
        == (built.manifest.sizes["artifact_bytes"])
    )


@pytest.mark.usefixtures("unverified")
def test_types_and_floats_that_the_user_names(tiny_source: Source, tmp_path: Path) -> None:
    blocks = BlockOptions((("attn_[qk]", "q8_0"), ("attn_q", "q6_k")))
    given = options(blocks=blocks, keep_float=frozenset({DOWN}))
    found = types(build(tiny_source, tmp_path / "tiny.qc", given).path)
    assert found["blk.0.attn_q.weight"] == found["blk.0.attn_k.weight"] == "Q8_0"
    assert found["blk.0.ffn_down.weight"] == "F16"
    plan = {row.name: row for row in dry_run(tiny_source, given).tensors}
    assert {name: row.format for name, row in plan.items()} == found
    assert plan["blk.0.ffn_down.weight"].why == "kept float, as --ignore says"


@pytest.mark.usefixtures("unverified")
def test_nearest_and_gptq(tiny_source: Source, calibrated: Calibrated, tmp_path: Path) -> None:
    nearest = build(tiny_source, tmp_path / "n.qc", calibrated(rounding="nearest"))
    assert {r["rounding"] for r in nearest.manifest.layers} == {"joint", "importance"}
    bare = build(tiny_source, tmp_path / "b.qc", options())
    assert {r["rounding"] for r in bare.manifest.layers} == {"joint", "nearest"}


@pytest.mark.usefixtures("unverified")
@pytest.mark.parametrize("name", ["data.jsonl", "data.npz"])
def test_calibration_files(
    tiny_source: Source, language_text: Path, tmp_path: Path, name: str
) -> None:
    import numpy as np

    file, text = tmp_path / name, language_text.read_text()
    if name.endswith("npz"):
        np.savez(file, ids=np.arange(200).reshape(4, 50) % 256)
    else:
        file.write_text("".join(json.dumps({"text": text[:120]}) + "\n" for _ in range(3)))
    given = options(calibrate=file, seq_len=32, rounding="nearest")
    built = build(tiny_source, tmp_path / "tiny.qc", given)
    assert built.manifest.calibration["source"] == name
    assert any(note.startswith(f"{name}: ") for note in built.manifest.notes)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_families_that_need_a_rewrite(checkpoints: ModuleType, tmp_path: Path, family: str) -> None:
    """GPT-2 holds its matrices transposed; gemma 2 has no fused attention."""
    folder = checkpoints.random_checkpoint(tmp_path / "model", family, num_hidden_layers=1)
    built = build(load(str(folder)), tmp_path / "x.qc", options())
    total = built.manifest.parity["total"]["logits"]["sqnr_db"]
    assert total > 25
