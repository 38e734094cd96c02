"""Directories as graphs: the same logits as transformers gives, weights that stay in their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qcompile.compiler.frontend.huggingface.directory import SINGLE, open_directory
from qcompile.compiler.frontend.huggingface.language_model import load_graph
from qcompile.compiler.frontend.load import Source, load
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.stored import StoredTensor

IDS = [3, 1, 4, 1, 5, 92, 65, 35, 250, 256]
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 40}


def assert_equal(checkpoints: ModuleType, folder: Path, source: Source) -> None:
    expected = checkpoints.torch_logits(folder, IDS)
    ids = {"input_ids": torch.tensor([IDS])}
    found = source.graph.run(ids)["logits"][0]
    close = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=close)
    with torch.no_grad():
        torch.testing.assert_close(source.module(**ids)[0], expected, rtol=0, atol=close)


@pytest.mark.parametrize(
    ("dtype", "tied", "shards"), [(torch.bfloat16, True, 3), (torch.float16, False, 1)]
)
def test_logits(
    tmp_path: Path, checkpoints: ModuleType, dtype: torch.dtype, tied: bool, shards: int
) -> None:
    folder = checkpoints.random_checkpoint(
        tmp_path / "model", "llama", tie_word_embeddings=tied, **SMALL
    )
    _saved_as(folder, dtype, shards)
    source = load(str(folder))
    assert_equal(checkpoints, folder, source)
    assert all(isinstance(t, StoredTensor) for t in source.graph.weights.stored.values())
    assert ("lm_head.weight" in source.graph.weights) == (not tied)
    assert {t.file.name for t in source.graph.weights.stored.values()} == {
        f.name for f in folder.glob("*.safetensors")
    }


def test_float32_is_what_transformers_computes(
    checkpoints: ModuleType, tiny_llama: Path, tiny_source: Source
) -> None:
    assert_equal(checkpoints, tiny_llama, tiny_source)
    checkpoint = tiny_source.checkpoint
    assert checkpoint is not None
    assert checkpoint.context == 64
    assert checkpoint.shapes["model.embed_tokens.weight"] == (272, 256)
    for shape in ((1, 2), (3, 64)):
        ids = {"input_ids": torch.randint(272, shape)}
        assert tiny_source.graph.run(ids)["logits"].shape == (*shape, 272)


def test_the_reference_holds_one_modules_weights(
    tiny_source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = StoredTensor.load

    def recorded(stored: StoredTensor) -> torch.Tensor:
        read.append(stored.key)
        model: Any = tiny_source.module._made[0]
        held = [n for n, p in model.named_parameters() if not p.is_meta]
        assert len(held) <= 1, held
        return original(stored)

    ids = {"input_ids": torch.tensor([IDS])}
    tiny_source.module(**ids)
    monkeypatch.setattr(StoredTensor, "load", recorded)
    tiny_source.module(**ids)
    assert read.count("model.embed_tokens.weight") == 2, "tied: looked up, and multiplied by"
    assert all(p.is_meta for p in tiny_source.module._made[0].parameters())


def test_weights_that_do_not_fit_are_all_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    weights = load_file(folder / SINGLE)
    del weights["model.norm.weight"]
    weights["model.layers.0.mlp.up_proj.weight"] = torch.ones(2, 2)
    weights["model.layers.7.mlp.up_proj.weight"] = torch.ones(2, 2)
    save_file(weights, folder / SINGLE)
    message = refused(folder)
    assert "it lacks model.norm.weight" in message
    assert "it has no place for model.layers.7.mlp.up_proj.weight" in message
    assert "model.layers.0.mlp.up_proj.weight is [2, 2], not [288, 256]" in message


def test_tied_weights_that_differ(tiny_llama: Path, tmp_path: Path) -> None:
    """Transformers runs such a model with both, whatever its configuration says."""
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    weights = load_file(folder / SINGLE)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / SINGLE, {"format": "pt"})
    names = load_graph(open_directory(folder)).graph.weights
    assert "lm_head.weight" not in names
    weights["lm_head.weight"][271, 255] += 1
    save_file(weights, folder / SINGLE, {"format": "pt"})
    message = refused(folder)
    assert "holds lm_head.weight and model.embed_tokens.weight with different values" in message
    assert "set tie_word_embeddings to false" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "brings code of its own (auto_map)"),
        ({"model_type": "unheard-of"}, "transformers cannot read"),
        ({"model_type": "t5"}, "cannot make a causal language model"),
        ({"num_attention_heads": "four"}, "transformers cannot"),
    ],
)
def test_configurations_of_no_language_model(
    tiny_llama: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    assert message in refused(folder)


def test_code_in_the_directory_never_runs(tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "copy"))
    (folder / "modeling_llama.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_llama.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "which is not run" in refused(folder)


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as found:
        load_graph(open_directory(folder))
    assert "\n" not in str(found.value)
    return str(found.value)


def _saved_as(folder: Path, dtype: torch.dtype, shards: int) -> None:
    weights = {n: t.to(dtype) for n, t in load_file(folder / SINGLE).items()}
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / SINGLE, {"format": "pt"})
        return
    (folder / SINGLE).unlink()
    said = {}
    for index in range(shards):
        file = f"model-{index}.safetensors"
        part = {n: t for i, (n, t) in enumerate(weights.items()) if i % shards == index}
        save_file(part, folder / file, {"format": "pt"})
        said |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": said})
    (folder / "model.safetensors.index.json").write_text(text)
