"""Mixtures of experts from a directory to a bundle that is verified in llama.cpp."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, dry_run
from qcompile.compiler.driver.check import verify
from qcompile.compiler.frontend.load import Source, load
from qcompile.compiler.ir.errors import CalibrationError, GateError
from qcompile.targets.gguf import emitter as gguf_emitter
from qcompile.targets.gguf.imatrix import Imatrix, write_imatrix
from qcompile.targets.options import BlockOptions

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")
SEQUENCES = 40
SIZES = {
    "qwen3moe": {"hidden_size": 256, "moe_intermediate_size": 256, "num_hidden_layers": 1},
    "mixtral": {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1},
}
EXPERT = "model.layers.0.mlp.experts.{}.{}_proj.weight"


@pytest.fixture(scope="module", params=["qwen3moe", "mixtral"])
def source(
    request: pytest.FixtureRequest, checkpoints: ModuleType, tmp_path_factory: Any
) -> Source:
    folder = tmp_path_factory.mktemp("mixture") / request.param
    return load(str(checkpoints.random_checkpoint(folder, request.param, **SIZES[request.param])))


@pytest.fixture(scope="module")
def bundle(source: Source, language_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A calibrated bundle, which no test may change."""
    given = options(calibrate=language_text, seq_len=32, num_samples=SEQUENCES)
    return build(source, tmp_path_factory.mktemp("bundle") / "x.qc", given)


def options(precision: str = "q4_k_m", **changes: Any) -> Options:
    return Options(target="gguf", precision=precision, **changes)


def stored(bundle: Bundle) -> dict[str, Any]:
    return {t.name: t for t in gguf.GGUFReader(bundle.path / "model.gguf").tensors}


def test_a_mixture_is_verified_whole(bundle: Bundle, source: Source, language_text: Path) -> None:
    assert bundle.passed
    engine = {row["name"]: row for row in bundle.manifest.parity["engine"]}
    assert engine["blk.0.ffn_down_exps.weight"]["differing"] == 0
    assert engine["blk.0.ffn_down_exps.weight"]["values"] == 4 * 256 * 256
    assert engine["logits in float32"]["sqnr_db"] > 100
    assert bundle.manifest.parity["export"]["logits"]["sqnr_db"] > 100
    assert all(check.passed for check in verify(bundle.path))
    tensors = stored(bundle)
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.ffn_gate_exps.weight"].tensor_type.name == "Q4_K"
    assert tensors["blk.0.ffn_gate_exps.weight"].shape.tolist() == [256, 256, 4]
    plan = dry_run(source, options(calibrate=language_text, seq_len=32))
    assert {row.name: row.format for row in plan.tensors} == {
        name: tensor.tensor_type.name for name, tensor in tensors.items()
    }


def test_the_report_has_a_row_an_expert(bundle: Bundle) -> None:
    rows = {row["name"]: row for row in bundle.manifest.layers}
    tokens = 32 * SEQUENCES
    for part in ("gate", "up", "down"):
        found = [rows[EXPERT.format(expert, part)] for expert in range(4)]
        assert sum(row["tokens"] for row in found) == 2 * tokens, "two experts a token"
        assert {row["op"] for row in found} == {"expert_linear"}
        assert {row["rounding"] for row in found} & {"gptq", "gptaq"}
    assert rows["model.layers.0.self_attn.q_proj.weight"]["tokens"] is None


def test_without_calibration_as_float32_is_pytorch(source: Source, tmp_path: Path) -> None:
    built = build(source, tmp_path / "f.qc", options("f32"))
    assert built.manifest.parity["quantization"]["logits"]["largest"] == 0
    engine = {row["name"]: row for row in built.manifest.parity["engine"]}
    assert engine["logits in float32"]["sqnr_db"] > 100, "llama.cpp against the graph"
    assert built.manifest.parity["export"]["logits"]["sqnr_db"] > 100, "the graph against PyTorch"


@pytest.mark.parametrize("source", ["qwen3moe"], indirect=True)
@pytest.mark.usefixtures("unverified")
def test_one_expert_kept_float_keeps_its_tensor_float(source: Source, tmp_path: Path) -> None:
    given = options(keep_float=frozenset({EXPERT.format(2, "up")}))
    tensors = stored(build(source, tmp_path / "x.qc", given))
    assert tensors["blk.0.ffn_up_exps.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_gate_exps.weight"].tensor_type.name == "Q4_K"
    plan = {row.name: row for row in dry_run(source, given).tensors}
    assert plan["blk.0.ffn_up_exps.weight"].format == "F16"
    assert plan["blk.0.ffn_up_exps.weight"].why == "kept float, as --ignore says"


@pytest.mark.parametrize("source", ["qwen3moe"], indirect=True)
@pytest.mark.usefixtures("unverified")
def test_a_text_that_few_experts_see(source: Source, tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", ids=np.full((1, 8), 7))
    given = options(calibrate=tmp_path / "one.npz", seq_len=8)
    built = build(source, tmp_path / "x.qc", given)
    (said,) = [n for n in built.manifest.notes if "matrices of experts" in n]
    assert said.startswith("12 of 12 matrices of experts were reached by fewer than 32")
    never = [row for row in built.manifest.layers if row["tokens"] == 0]
    assert never
    assert {row["rounding"] for row in never} == {"joint"}
    assert f"{len(never)} of them by none" in said


@pytest.mark.parametrize("source", ["qwen3moe"], indirect=True)
@pytest.mark.usefixtures("unverified")
def test_the_imatrix_of_each_expert_rounds_that_expert(source: Source, tmp_path: Path) -> None:
    """Bytes of each expert are those for its own row of the file; other counts of experts are refused."""
    plan = [row for row in dry_run(source, options()).tensors if len(row.shape) > 1]
    generator = np.random.default_rng(0)
    values, counts = {}, {}
    for row in plan:
        shape = (row.shape[0] if len(row.shape) == 3 else 1, row.shape[-1])
        values[row.name] = generator.random(shape).astype(np.float32) ** 4
        counts[row.name] = np.full(shape[0], 8, np.float32)  # a power of two: sums keep every bit
    write_imatrix(tmp_path / "i.gguf", Imatrix(values, counts))
    given = options(blocks=BlockOptions(imatrix=tmp_path / "i.gguf"))
    name = "blk.0.ffn_up_exps.weight"
    found = stored(build(source, tmp_path / "x.qc", given))[name].data
    expected = _encoded(source, values[name])
    assert np.array_equal(found.reshape(expected.shape), expected)
    assert not np.array_equal(expected, _encoded(source, values[name][::-1]))
    few = {n: v[:3] if len(v) > 1 else v for n, v in values.items()}
    write_imatrix(tmp_path / "i.gguf", Imatrix(few, {n: counts[n][: len(few[n])] for n in few}))
    with pytest.raises(CalibrationError, match="has 4 matrices, and it knows 3"):
        build(source, tmp_path / "y.qc", given)


def _encoded(source: Source, importance: np.ndarray) -> np.ndarray:
    """Return the experts' blocks, one after the other, each by its own importance."""
    import torch

    from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS

    weights = [source.graph.weights[EXPERT.format(expert, "up")] for expert in range(4)]
    rows = [
        BLOCK_FORMATS["Q4_K"].encode(w, torch.from_numpy(i.copy()))
        for w, i in zip(weights, importance, strict=True)
    ]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("source", ["qwen3moe"], indirect=True)
def test_experts_in_another_order_are_rejected(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_emitter.write_gguf

    def swapped(file: Path, *rest: Any) -> None:
        write(file, *rest)
        found = {t.name: t for t in gguf.GGUFReader(file).tensors}["blk.0.ffn_down_exps.weight"]
        data, size = bytearray(file.read_bytes()), int(found.n_bytes) // 4
        start = int(found.data_offset)
        first, second = data[start : start + size], data[start + size : start + 2 * size]
        data[start : start + 2 * size] = second + first
        file.write_bytes(data)

    monkeypatch.setattr(gguf_emitter, "write_gguf", swapped)
    with pytest.raises(GateError, match=r"blk\.0\.ffn_down_exps\.weight") as failed:
        build(source, tmp_path / "x.qc", options("q8_0"))
    rejected = failed.value.bundle
    rows = {row["name"]: row for row in rejected.manifest.parity["engine"]}
    assert rows["logits"]["sqnr_db"] < rows["logits"]["limit_db"]
