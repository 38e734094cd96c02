"""Random checkpoints of every family: what llama.cpp computes from the file is what PyTorch computes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.architectures import find_architecture
from qcompile.targets.gguf.container import StoredTensor, write_gguf
from qcompile.targets.gguf.general import general_fields
from qcompile.targets.gguf.mixes import MIXES, tensor_types

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 256, 24)]

# Largest difference over the largest logit. Float32 sums in another order: 6e-6 at most was seen.
CLOSE = 2e-5
# ggml looks GELU up in a table of float16 numbers: 1e-4 (gemma) and 3e-4 (gpt2) were seen.
GELU = {"gemma2": 5e-4, "gemma3": 5e-4, "gpt2": 1.5e-3}

FAMILIES = (
    *("llama", "llama3", "llama-biases", "mistral", "mixtral", "smollm3"),
    *("qwen2", "qwen2-yarn", "qwen3", "qwen3moe"),
    *("gemma2", "gemma3", "phi3", "phi3-longrope", "gpt2"),
)
ODD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"hidden_size": 40, "intermediate_size": 52}),
    ("qwen3moe", {"hidden_size": 36, "head_dim": 10, "moe_intermediate_size": 17}),
    ("gpt2", {"n_embd": 40, "n_inner": 70}),
    ("gemma2", {"hidden_size": 36, "head_dim": 10, "query_pre_attn_scalar": 10}),
    ("phi3", {"hidden_size": 40, "intermediate_size": 33}),
    ("mixtral", {"intermediate_size": 19, "num_key_value_heads": 4}),
    ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": False}),
    ("gpt2", {"tie_word_embeddings": False}),
]


def test_no_family_is_left_out(checkpoints: ModuleType) -> None:
    assert set(FAMILIES) == set(checkpoints.FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits(
    family: str, tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    assert relative_error(tmp_path, checkpoints, llama_cpp, family) < GELU.get(family, CLOSE)


@pytest.mark.parametrize(("family", "changes"), ODD)
def test_logits_of_odd_sizes(
    family: str,
    changes: dict[str, Any],
    tmp_path: Path,
    checkpoints: ModuleType,
    llama_cpp: ModuleType,
) -> None:
    error = relative_error(tmp_path, checkpoints, llama_cpp, family, **changes)
    assert error < GELU.get(family, CLOSE)


def test_long_factors_beyond_the_original_context(
    tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    tokens = TOKENS * 2
    assert len(tokens) > 32, "the original context"
    error = relative_error(tmp_path, checkpoints, llama_cpp, "phi3-longrope", tokens=tokens)
    assert error < CLOSE


def relative_error(
    folder: Path,
    checkpoints: ModuleType,
    llama_cpp: ModuleType,
    family: str,
    tokens: list[int] = TOKENS,
    **changes: Any,
) -> float:
    model = checkpoints.random_checkpoint(folder / "model", family, **changes)
    file = checkpoints.write_f32(model, folder / "model.gguf")
    expected = checkpoints.torch_logits(model, tokens).numpy()
    found = llama_cpp.logits(file, tokens)
    assert found.shape == expected.shape
    assert expected.std() > 1, "weights that matter"
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("family", ["llama-biases", "qwen3moe", "gpt2"])
def test_sources_that_were_encoded_first_give_llama_quantizes_bytes(
    family: str, tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    """Q8_0 has one encoding, so permuting and stacking its rows must give what quantizing last gives."""
    sizes = {"n_embd": 64} if family == "gpt2" else {"hidden_size": 64, "intermediate_size": 96}
    if family == "qwen3moe":
        sizes["moe_intermediate_size"] = 32
    folder = checkpoints.random_checkpoint(tmp_path / "model", family, **sizes)
    source = checkpoints.write_f32(folder, tmp_path / "f32.gguf")
    llama_cpp.quantize(source, tmp_path / "theirs.gguf", MIXES["q8_0"].file_type)
    write_q8_0(checkpoints, folder, tmp_path / "ours.gguf")
    theirs = {t.name: t for t in gguf.GGUFReader(tmp_path / "theirs.gguf").tensors}
    ours = {t.name: t for t in gguf.GGUFReader(tmp_path / "ours.gguf").tensors}
    assert set(ours) == set(theirs)
    assert "Q8_0" in {t.tensor_type.name for t in ours.values()}
    for name, tensor in ours.items():
        assert tensor.tensor_type == theirs[name].tensor_type, name
        np.testing.assert_array_equal(tensor.data, theirs[name].data, err_msg=name)


def write_q8_0(checkpoints: ModuleType, folder: Path, file: Path) -> None:
    """Store a checkpoint whose matrices are encoded as they lie there, before anything is done to them."""
    config, shapes, read = checkpoints.opened(folder)
    architecture = find_architecture(config)
    tensors = architecture.tensors(config, shapes)
    sizes = {tensor.name: tensor.shape for tensor in tensors}
    types = tensor_types("q8_0", sizes, architecture.hyperparameters(config)).types

    def stored(tensor: Any) -> StoredTensor:
        kind = types[tensor.name]
        encode = BLOCK_FORMATS[kind].encode
        data = {
            "F32": lambda: checkpoints.f32_rows(tensor.numbers(read)),
            "Q8_0": lambda: tensor.runs(lambda name: encode(tensor.matrix(read(name)))),
        }[kind]
        return StoredTensor(tensor.name, tensor.shape, kind, data)

    fields = {**general_fields(architecture.name, "random", 7), **architecture.metadata(config)}
    write_gguf(file, fields, [stored(tensor) for tensor in tensors])


def test_experts_that_transformers_has_fused_make_the_same_file(
    tmp_path: Path, checkpoints: ModuleType
) -> None:
    """A checkpoint has each expert by itself, a loaded model all of them in one parameter."""
    from transformers import AutoModelForCausalLM

    for family in ("qwen3moe", "mixtral"):
        folder = checkpoints.random_checkpoint(tmp_path / family, family)
        config, shapes, read = checkpoints.opened(folder)
        fused = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        architecture = find_architecture(config)
        one = architecture.tensors(config, shapes)
        other = architecture.tensors(config, {n: tuple(v.shape) for n, v in fused.items()})
        assert [t.name for t in one] == [t.name for t in other]
        assert [t.sources for t in one] != [t.sources for t in other]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.shape == theirs.shape
            assert torch.equal(mine.numbers(read), theirs.numbers(fused.__getitem__)), mine.name
