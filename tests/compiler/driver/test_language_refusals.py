"""Builds of language models that are refused, before the work or after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import build, dry_run, language
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import GateError, ModelError, QCompileError
from qcompile.targets.gguf import emitter as gguf_emitter
from qcompile.targets.options import BlockOptions

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
DOWN = "model.layers.0.mlp.down_proj.weight"


def options(precision: str = "q4_k_m", **changes: Any) -> Options:
    return Options(target="gguf", precision=precision, **changes)


def refused(source: Source, folder: Path, given: Options) -> str:
    with pytest.raises(QCompileError) as found:
        build(source, folder / "tiny.qc", given)
    assert "\n" not in str(found.value)
    assert sorted(os.listdir(folder)) == []
    return str(found.value)


def test_calibration_that_cannot_be_used(
    tiny_source: Source, language_text: Path, tmp_path: Path
) -> None:
    out, short = tmp_path / "out", tmp_path / "short.txt"
    out.mkdir()
    short.write_text("short")

    def said(precision: str = "q4_k_m", **given: Any) -> str:
        return refused(tiny_source, out, options(precision, **given))

    assert "is calibrated on texts: give --calibrate FILE" in said(calibrate="random")
    assert "nowhere.txt does not exist" in said(calibrate="nowhere.txt")
    assert "--num-samples 0 leaves nothing" in said(calibrate=language_text, num_samples=0)
    assert "64" in said(calibrate=language_text, seq_len=65), "the model's context"
    assert "less than one sequence of 64" in said(calibrate=short, seq_len=64)
    both = {"calibrate": language_text, "blocks": BlockOptions(imatrix=language_text)}
    assert "give one of them" in said(**both)
    assert "adaround" in said(rounding="adaround")
    assert "iq2_xs needs calibration data" in said("iq2_xs")


def test_an_imatrix_of_another_model(tiny_source: Source, tmp_path: Path) -> None:
    import numpy as np

    from qcompile.targets.gguf.imatrix import Imatrix, write_imatrix

    (tmp_path / "out").mkdir()
    one = np.ones((1, 7), np.float32)
    other = Imatrix({"blk.0.attn_q.weight": one}, {"blk.0.attn_q.weight": np.ones(1, np.float32)})
    write_imatrix(tmp_path / "other.gguf", other)
    blocks = BlockOptions(imatrix=tmp_path / "other.gguf")
    message = refused(tiny_source, tmp_path / "out", options(blocks=blocks))
    assert "other.gguf is of another model" in message
    assert "blk.0.attn_q.weight (7, not 256)" in message


def test_a_disk_that_is_too_small(
    tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * dry_run(tiny_source, options()).artifact_bytes
    monkeypatch.setattr(language.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    message = refused(tiny_source, tmp_path, options())
    assert f"has {needed - 1:,} bytes free, and tiny needs {needed:,}" in message


@pytest.mark.parametrize("name", ["model.norm.weight", DOWN])
@pytest.mark.parametrize("informed", [False, True])
def test_a_weight_that_is_no_number(
    tiny_llama: Path,
    tiny_source: Source,
    calibrated: Callable[..., Options],
    tmp_path: Path,
    name: str,
    informed: bool,
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (tmp_path / "out").mkdir()
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[5] = torch.nan
    save_file(weights, folder / "model.safetensors")
    graph = tiny_source.graph.copy()
    held = {
        n: replace(t, file=folder / "model.safetensors") for n, t in graph.weights.stored.items()
    }
    graph.weights = type(graph.weights)(graph.module, held)
    spoiled = replace(tiny_source, graph=graph)
    given = calibrated() if informed else options()
    message = refused(spoiled, tmp_path / "out", given)
    assert f"{name} in " in message
    assert "1 of " in message


def test_a_file_with_other_bytes_is_rejected(
    tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_emitter.write_gguf

    def spoiled(file: Path, *rest: Any) -> None:
        write(file, *rest)
        data = bytearray(file.read_bytes())
        tensor = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.attn_v.weight")
        data[tensor.data_offset + 20] ^= 0x11
        file.write_bytes(data)

    monkeypatch.setattr(gguf_emitter, "write_gguf", spoiled)
    with pytest.raises(GateError, match=r"first blk\.0\.attn_v\.weight: by up to"):
        build(tiny_source, tmp_path / "tiny.qc", options("q8_0"))
    assert sorted(os.listdir(tmp_path)) == ["tiny.qc.rejected"]


def test_a_file_with_another_tokenizer_is_rejected(
    tiny_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_emitter.write_gguf

    def spoiled(file: Path, fields: Any, *rest: Any) -> None:
        words = list(fields["tokenizer.ggml.tokens"])
        words[ord("b")], words[ord("c")] = words[ord("c")], words[ord("b")]
        write(file, {**fields, "tokenizer.ggml.tokens": words}, *rest)

    monkeypatch.setattr(gguf_emitter, "write_gguf", spoiled)
    with pytest.raises(GateError, match=r"tokenizer: .*'[bc]'"):
        build(tiny_source, tmp_path / "tiny.qc", options("q8_0"))


def test_a_model_file_is_no_language_model(tmp_path: Path) -> None:
    from qcompile.compiler.frontend.load import from_module

    source = from_module(torch.nn.Linear(3, 4), torch.ones(2, 3))
    with pytest.raises(QCompileError, match="gguf stores language models: give a Hugging Face"):
        build(source, tmp_path / "x.qc", options("f16"))
    with pytest.raises(QCompileError, match="gguf stores language models"):
        dry_run(source, options("f16"))


def test_formats_without_a_form_for_directories(tiny_source: Source, tmp_path: Path) -> None:
    for target in ("onnx", "coreml"):
        with pytest.raises(QCompileError, match="no form for a language model's directory"):
            build(tiny_source, tmp_path / "x.qc", Options(target=target, precision=None))
    with pytest.raises(ModelError, match="the model has no weight lm_head"):
        dry_run(tiny_source, options(keep_float=frozenset({"lm_head"})))
