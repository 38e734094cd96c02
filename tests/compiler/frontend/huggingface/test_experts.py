"""Mixtures of experts as graphs: transformers' logits, a weight of its own for each expert's projection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qcompile.compiler.frontend.huggingface.directory import INDEX, SINGLE, open_directory
from qcompile.compiler.frontend.huggingface.language_model import (
    empty_model,
    load_graph,
    matched,
    read_config,
)
from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.ops import EXPERT_LINEAR
from qcompile.compiler.ir.stored import StoredTensor
from qcompile.passes.quantization.records import sqnr_db

IDS = [3, 1, 4, 1, 5, 92, 65, 35, 250, 256]
SMALL = {"num_hidden_layers": 1, "hidden_size": 32}
EXPERTS = "model.layers.0.mlp.experts"


def save(folder: Path, weights: dict[str, Tensor], layout: str) -> None:
    """Save weights as one file or as three shards, in which the experts of a layer are apart."""
    (folder / SINGLE).unlink()
    if layout != "sharded":
        save_file(weights, folder / SINGLE, {"format": "pt"})
        return
    said = {}
    for index in range(3):
        part = {n: t for i, (n, t) in enumerate(sorted(weights.items())) if i % 3 == index}
        save_file(part, folder / f"model-{index}.safetensors", {"format": "pt"})
        said |= dict.fromkeys(part, f"model-{index}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": said}))


def fused(folder: Path) -> dict[str, Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "layout", "changes"),
    [
        ("qwen3moe", "sharded", {"norm_topk_prob": True, "num_hidden_layers": 2}),
        ("qwen3moe", "fused", {"norm_topk_prob": False, "num_experts_per_tok": 3}),
        ("mixtral", "one file", {}),
        ("mixtral", "fused", {"num_experts_per_tok": 1}),
    ],
)
def test_logits(
    family: str, layout: str, changes: dict[str, Any], tmp_path: Path, checkpoints: ModuleType
) -> None:
    given = {**SMALL, **changes}
    folder = checkpoints.random_checkpoint(tmp_path / "model", family, **given)
    expected = checkpoints.torch_logits(folder, IDS)
    parts = fused(folder)
    save(folder, parts if layout == "fused" else load_file(folder / SINGLE), layout)
    source = load(str(folder))
    ids = {"input_ids": torch.tensor([IDS])}
    quality = sqnr_db([(expected, source.graph.run(ids)["logits"][0])])
    assert quality is not None
    assert quality > 100
    with torch.no_grad():
        torch.testing.assert_close(source.module(**ids)[0], expected, rtol=0, atol=1e-5)
    for shape in ((1, 2), (3, 64)):
        free = {"input_ids": torch.randint(272, shape)}
        assert source.graph.run(free)["logits"].shape == (*shape, 272)
    assert_one_to_one(source.graph, parts, given["num_hidden_layers"])


def assert_one_to_one(graph: Any, parts: dict[str, Tensor], layers: int) -> None:
    """Each expert's projection is a weight that is read from its place in a file, and no other is."""
    stored = graph.weights.stored
    names = [name for name in graph.weights if ".experts." in name]
    assert len(names) == layers * 4 * 3
    assert len(graph.calls(EXPERT_LINEAR)) == layers * 3
    assert all(isinstance(stored[name], StoredTensor) for name in names)
    assert len({(t.key, t.entry, t.rows) for t in (stored[n] for n in names)}) == len(names)
    gates, downs = parts[f"{EXPERTS}.gate_up_proj"], parts[f"{EXPERTS}.down_proj"]
    inner = gates.shape[1] // 2
    for expert in range(4):
        for name, value in (
            ("gate", gates[expert, :inner]),
            ("up", gates[expert, inner:]),
            ("down", downs[expert]),
        ):
            own = f"{EXPERTS}.{expert}.{name}_proj.weight"
            assert torch.equal(graph.weights[own], value), own
            assert stored[own].shape() == tuple(value.shape)


@pytest.fixture(scope="module")
def mixtral(checkpoints: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixtral") / "model"
    found: Path = checkpoints.random_checkpoint(folder, "mixtral", **SMALL)
    return found


def test_the_reference_reads_an_expert_when_it_comes_to_it(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load(str(mixtral))
    read: list[str] = []
    original = StoredTensor.load

    def recorded(stored: StoredTensor) -> Tensor:
        read.append(stored.key)
        return original(stored)

    monkeypatch.setattr(StoredTensor, "load", recorded)
    with torch.no_grad():
        source.module(input_ids=torch.tensor([[7]]))
    assert len([key for key in read if ".experts." in key]) == 2 * 3, "two experts of four"
    assert all(p.is_meta for p in source.module._made[0].parameters())


def test_what_a_damaged_checkpoint_lacks_is_named(mixtral: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixtral, tmp_path / "copy"))
    weights = load_file(folder / SINGLE)
    old = "model.layers.0.block_sparse_moe.experts"
    del weights[f"{old}.2.w1.weight"]
    weights[f"{old}.3.w2.weight"] = torch.ones(2, 2)
    weights[f"{old}.4.w3.weight"] = torch.ones(2, 2)
    save(folder, weights, "one file")
    message = refused(folder)
    assert f"it lacks {EXPERTS}.2.gate_proj.weight" in message
    assert f"it has no place for {EXPERTS}.4.up_proj.weight" in message
    assert f"{EXPERTS}.3.down_proj.weight is [2, 2], not [32, 80]" in message
    save(folder, {n: t for n, t in weights.items() if ".experts." not in n}, "one file")
    assert "it lacks " in refused(folder)


def test_a_fused_checkpoint_of_more_experts(mixtral: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixtral, tmp_path / "copy"))
    weights = fused(folder)
    name = f"{EXPERTS}.down_proj"
    save(folder, {**weights, name: torch.cat([weights[name]] * 2)}, "fused")
    assert f"it has no place for {EXPERTS}.4.down_proj.weight" in refused(folder)
    save(folder, {**weights, name: weights[name][0]}, "fused")
    assert f"it has no place for {name}" in refused(folder)


def test_an_expert_that_is_no_number(mixtral: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(mixtral, tmp_path / "copy"))
    weights = fused(folder)
    weights[f"{EXPERTS}.gate_up_proj"][1, 100, 3] = torch.nan
    save(folder, weights, "fused")
    directory = open_directory(folder)
    found = matched(directory, empty_model(directory, read_config(directory)))
    assert found[f"{EXPERTS}.1.gate_proj.weight"].load().isfinite().all()
    with pytest.raises(ModelError, match=r"gate_up_proj in .* holds 1 of 2,560 values"):
        found[f"{EXPERTS}.1.up_proj.weight"].load()


def test_mixtures_of_another_kind(tmp_path: Path, checkpoints: ModuleType) -> None:
    """gpt-oss has biases and clamps."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = AutoConfig.for_model("gpt_oss", num_local_experts=4, **sizes, **heads)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "is a mixture of experts (num_experts = 4)" in message
    assert "GptOssForCausalLM does not compute them as" in message


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as found:
        load_graph(open_directory(folder))
    assert "\n" not in str(found.value)
    return str(found.value)
