"""Builds of language models: what is stored, what is refused, and what a killed build leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, dry_run, language
from qcompile.compiler.driver.check import verify
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.driver.work_folder import held, is_held
from qcompile.compiler.frontend.load import Source, load
from qcompile.compiler.ir.errors import GateError, ModelError, OutputError, QCompileError
from qcompile.passes.calibration.walk import Walk
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.targets.gguf import emitter as gguf_emitter
from qcompile.targets.options import BlockOptions

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
DOWN = "model.layers.0.mlp.down_proj.weight"
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40


def options(precision: str = "q4_k_m", **changes: Any) -> Options:
    return Options(target="gguf", precision=precision, **changes)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


def calibrated(text: Path, **changes: Any) -> Options:
    return options(calibrate=text, seq_len=32, num_samples=20, **changes)


@pytest.fixture(scope="module")
def bundle(tiny_source: Source, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A calibrated bundle, which no test may change."""
    folder = tmp_path_factory.mktemp("bundle") / "tiny.qc"
    return build(tiny_source, folder, calibrated(text))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what verification takes: for tests of what is before it."""
    monkeypatch.setattr(gguf_emitter.compare, "engine_errors", lambda *_: [])


def contents(folder: Path) -> dict[str, bytes]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def types(folder: Path) -> dict[str, str]:
    found = gguf.GGUFReader(folder / "model.gguf").tensors
    return {tensor.name: tensor.tensor_type.name for tensor in found}


def left(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def refused(source: Source, folder: Path, given: Options) -> str:
    with pytest.raises(QCompileError) as found:
        build(source, folder / "tiny.qc", given)
    assert "\n" not in str(found.value)
    assert left(folder) == []
    return str(found.value)


def test_a_bundle_is_verified_whole(bundle: Bundle) -> None:
    assert bundle.passed
    manifest = bundle.manifest
    names = {row["name"] for row in manifest.parity["engine"]}
    assert {"tokenizer", "logits in float32", "logits", "blk.0.ffn_down.weight"} <= names
    assert {r["rounding"] for r in manifest.layers} & {"gptq", "gptaq"}
    assert manifest.options["seq_len"] == 32
    assert manifest.calibration["samples"] == 20
    (said,) = [note for note in manifest.notes if note.startswith("text.txt: ")]
    assert "20 sequences of 32; the last" in said
    assert left(bundle.path.parent) == ["tiny.qc"]
    assert all(check.passed for check in verify(bundle.path))


def test_two_builds_are_the_same_bytes(
    bundle: Bundle, tiny_llama: Path, text: Path, tmp_path: Path
) -> None:
    again = build(load(str(tiny_llama)), tmp_path / "tiny.qc", calibrated(text))
    assert contents(again.path) == contents(bundle.path)


def test_the_plan_is_the_file(bundle: Bundle, tiny_source: Source, text: Path) -> None:
    plan = dry_run(tiny_source, calibrated(text))
    assert plan.artifact_bytes == (bundle.path / "model.gguf").stat().st_size
    assert {row.name: row.format for row in plan.tensors} == types(bundle.path)
    (odd,) = [row for row in plan.tensors if row.why]
    assert odd.name == "blk.0.ffn_down.weight"
    assert odd.why in bundle.manifest.notes
    assert "which takes rows in blocks of 256 and not of 288: " in odd.why
    assert odd.why.endswith("bytes more")


@pytest.mark.usefixtures("quick")
def test_what_is_said_before_the_work(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    def said(name: str, given: Options) -> list[str]:
        found: list[str] = []
        progress = Progress(note=found.append)
        built = build(tiny_source, tmp_path / name, given, progress=progress)
        assert set(found) <= set(built.manifest.notes)
        assert list(dry_run(tiny_source, given).notes) == found
        return found

    odd, bare = said("bare.qc", options())
    assert odd.startswith("blk.0.ffn_down.weight is stored as ")
    assert bare.startswith("without calibration data weights in ")
    assert "Q4_K" in bare
    assert "give --calibrate FILE (.txt, .jsonl, .npz) or --imatrix FILE" in bare
    assert said("f16.qc", options("f16")) == [], "no weight is rounded to blocks"
    assert said("nearest.qc", calibrated(text, rounding="nearest")) == [odd]


def test_the_report_says_which_inputs_were_rescaled(bundle: Bundle) -> None:
    rows = {row["name"]: row for row in bundle.manifest.foldings}
    first = rows["model.layers.0.input_layernorm.weight"]
    assert first["layers"] == [f"model.layers.0.self_attn.{n}_proj.weight" for n in "qkv"]
    assert all(row["error"] == row["tried"].get(row["method"], 1.0) for row in rows.values())
    summary = dict(bundle.summary())
    kept = [row for row in rows.values() if row["method"] != "none"]
    assert ("rescaled inputs" in summary) is bool(kept)
    if kept:
        assert f"of {len(kept)} of {len(rows)} groups" in summary["rescaled inputs"]
    assert Bundle.open(bundle.path).manifest.foldings == bundle.manifest.foldings


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


@pytest.mark.usefixtures("quick")
def test_types_and_floats_that_the_user_names(tiny_source: Source, tmp_path: Path) -> None:
    blocks = BlockOptions((("attn_[qk]", "q8_0"), ("attn_q", "q6_k")))
    given = options(blocks=blocks, keep_float=frozenset({DOWN}))
    found = types(build(tiny_source, tmp_path / "tiny.qc", given).path)
    assert found["blk.0.attn_q.weight"] == found["blk.0.attn_k.weight"] == "Q8_0"
    assert found["blk.0.ffn_down.weight"] == "F16"
    plan = {row.name: row for row in dry_run(tiny_source, given).tensors}
    assert {name: row.format for name, row in plan.items()} == found
    assert plan["blk.0.ffn_down.weight"].why == "kept float, as --ignore says"


@pytest.mark.usefixtures("quick")
def test_nearest_and_gptq(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    nearest = build(tiny_source, tmp_path / "n.qc", calibrated(text, rounding="nearest"))
    assert {r["rounding"] for r in nearest.manifest.layers} == {"nearest", "importance"}
    bare = build(tiny_source, tmp_path / "b.qc", options())
    assert {r["rounding"] for r in bare.manifest.layers} == {"nearest"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["data.jsonl", "data.npz"])
def test_calibration_files(tiny_source: Source, tmp_path: Path, name: str) -> None:
    import numpy as np

    file = tmp_path / name
    if name.endswith("npz"):
        np.savez(file, ids=np.arange(200).reshape(4, 50) % 256)
    else:
        file.write_text("".join(json.dumps({"text": TEXT[:120]}) + "\n" for _ in range(3)))
    given = options(calibrate=file, seq_len=32, rounding="nearest")
    built = build(tiny_source, tmp_path / "tiny.qc", given)
    assert built.manifest.calibration["source"] == name
    assert any(note.startswith(f"{name}: ") for note in built.manifest.notes)


def test_calibration_that_cannot_be_used(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    def said(**given: Any) -> str:
        return refused(tiny_source, tmp_path, options(**given))

    assert "is calibrated on texts: give --calibrate FILE" in said(calibrate="random")
    assert "nowhere.txt does not exist" in said(calibrate="nowhere.txt")
    assert "--num-samples 0 leaves nothing" in said(calibrate=text, num_samples=0)
    assert "64" in said(calibrate=text, seq_len=65), "the model's context"
    assert "less than one sequence of 64" in said(calibrate=_short(text), seq_len=64)
    assert "give one of them" in said(calibrate=text, blocks=BlockOptions(imatrix=text))
    assert "adaround" in said(rounding="adaround")
    message = refused(tiny_source, tmp_path, options("iq2_xs"))
    assert "iq2_xs needs calibration data" in message


def _short(text: Path) -> Path:
    file = text.with_name("short.txt")
    file.write_text("short")
    return file


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
    text: Path,
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
    given = calibrated(text) if informed else options()
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
    assert left(tmp_path) == ["tiny.qc.rejected"]


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


def test_a_killed_build_goes_on(
    bundle: Bundle,
    tiny_source: Source,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put, done = BlockStore.put, []

    def killed(self: BlockStore, name: str, *rest: Any) -> Any:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(name)
        return put(self, name, *rest)

    folder, given = tmp_path / "tiny.qc", calibrated(text)
    monkeypatch.setattr(BlockStore, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_source, folder, given)
    (work,) = [name for name in left(tmp_path) if ".work-" in name]
    monkeypatch.setattr(BlockStore, "put", put)
    with pytest.raises(OutputError, match="is of another model, calibration data or options"):
        build(tiny_source, folder, replace(given, precision="q6_k", resume=True))
    assert work in left(tmp_path)
    again: list[str] = []
    monkeypatch.setattr(
        BlockStore, "put", lambda self, name, *rest: (again.append(name), put(self, name, *rest))[1]
    )
    resumed = build(tiny_source, folder, replace(given, resume=True))
    assert not set(again) & set(done)
    assert contents(resumed.path) == contents(bundle.path)
    assert left(tmp_path) == ["tiny.qc"]


def test_what_another_build_left_is_removed(tiny_source: Source, tmp_path: Path) -> None:
    old = tmp_path / ".tiny.qc.work-0123"
    old.mkdir()
    target = options().resolve()
    found = language.work_folder(tiny_source, target, options(), tmp_path / "tiny.qc")
    assert found.name.startswith(".tiny.qc.work-")
    assert not old.exists()


def test_a_resumed_build_repeats_neither_foldings_nor_statistics(
    bundle: Bundle,
    tiny_source: Source,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed before the first weight is done, when all that was found is foldings and moments."""
    put, walked = BlockStore.put, []

    def killed(self: BlockStore, name: str, *rest: Any) -> Any:
        raise KeyboardInterrupt

    run = Walk.run

    def counted(self: Walk, visitor: Any) -> None:
        walked.append(type(visitor).__name__)
        run(self, visitor)

    monkeypatch.setattr(Walk, "run", counted)
    monkeypatch.setattr(BlockStore, "put", killed)
    folder, given = tmp_path / "tiny.qc", calibrated(text)
    with pytest.raises(KeyboardInterrupt):
        build(tiny_source, folder, given)
    first = list(walked)
    walked.clear()
    monkeypatch.setattr(BlockStore, "put", put)
    resumed = build(tiny_source, folder, replace(given, resume=True))
    assert first == ["_Chooser", "_Watch", "_Rounder"]
    assert walked == ["_Rounder"]
    assert contents(resumed.path) == contents(bundle.path)
    assert left(tmp_path) == ["tiny.qc"]


@pytest.mark.parametrize("precision", ["q4_k_m", "q8_0"])
def test_a_second_build_of_one_bundle_is_refused(
    tiny_source: Source, tmp_path: Path, precision: str
) -> None:
    """Whether it is the same build, which has the same work folder, or another one."""
    folder, given = tmp_path / "tiny.qc", options()
    work = language.work_folder(tiny_source, given.resolve(), given, folder)
    with held(work, folder):
        (work / "done").touch()
        for resume in (False, True):
            with pytest.raises(OutputError, match="another process is building"):
                build(tiny_source, folder, options(precision, resume=resume))
        assert left(tmp_path) == [work.name]
        assert left(work) == ["done"]
    shutil.rmtree(work)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """The lock ends with its process, so what that left can be used or removed."""
    work, folder = tmp_path / ".tiny.qc.work-1", tmp_path / "tiny.qc"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from qcompile.compiler.driver.work_folder import held\n"
        "with held(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(work), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(work)
        with pytest.raises(OutputError, match="another process is building"), held(work, folder):
            pass
        process.kill()
    with held(work, folder):
        assert is_held(work)
    assert not is_held(work)


@pytest.mark.slow
def test_kill_9_and_resume(tiny_llama: Path, text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny.qc"
    command = [sys.executable, "-m", "qcompile", str(tiny_llama), "--target", "gguf"]
    command += ["-p", "q4_k_m", "--calibrate", str(text), "--seq-len", "32", "-o"]
    started = subprocess.Popen([*command, str(folder)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".tiny.qc.work-*/*.json")):
        assert started.poll() is None
        time.sleep(0.005)
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    assert not folder.exists()
    subprocess.run([*command, str(folder), "--resume"], check=True, stdout=subprocess.DEVNULL)
    whole = tmp_path / "whole.qc"
    subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
    assert contents(folder) == contents(whole)
    assert left(tmp_path) == ["tiny.qc", "whole.qc"]


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


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_families_that_need_a_rewrite(checkpoints: ModuleType, tmp_path: Path, family: str) -> None:
    """GPT-2 holds its matrices transposed; gemma 2 has no fused attention."""
    folder = checkpoints.random_checkpoint(tmp_path / "model", family, num_hidden_layers=1)
    built = build(load(str(folder)), tmp_path / "x.qc", options())
    total = built.manifest.parity["total"]["logits"]["sqnr_db"]
    assert total > 25
