"""The types that we choose are llama-quantize's: it is asked, for every mix."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.gguf.architectures import find_architecture
from qcompile.targets.gguf.container import StoredTensor, header, predicted_bytes
from qcompile.targets.gguf.general import general_fields
from qcompile.targets.gguf.mix_rules import Hyperparameters
from qcompile.targets.gguf.mixes import MIXES, summed, tensor_types

LLAMA_70B = Hyperparameters("llama", 80, 64, 8)

CASES: dict[str, tuple[str, dict[str, int]]] = {
    "llama": ("llama", {"num_hidden_layers": 17}),
    "shared-values": ("llama", {"num_hidden_layers": 9, "num_key_value_heads": 1}),
    "tied": ("llama3", {"num_hidden_layers": 9}),
    "narrow": ("llama", {"hidden_size": 96, "intermediate_size": 48}),
    "narrow-tied": ("qwen2", {"hidden_size": 160, "intermediate_size": 512}),
    "eight-experts": ("mixtral", {"num_hidden_layers": 17, "num_local_experts": 8}),
    "experts": ("qwen3moe", {"num_hidden_layers": 9, "moe_intermediate_size": 256}),
    "fused": ("phi3", {"num_hidden_layers": 17}),
    "gemma": ("gemma3", {"num_hidden_layers": 12}),
    "gpt2": ("gpt2", {"n_embd": 256, "n_layer": 9}),
}

Shapes = Mapping[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def model(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: ModuleType
) -> Callable[..., tuple[Path, Shapes, Hyperparameters]]:
    """A file whose data is a hole: the shapes of a family's tensors, and its fields."""
    file = tmp_path_factory.mktemp("mixes") / "random.gguf"

    def make(family: str, **changes: Any) -> tuple[Path, Shapes, Hyperparameters]:
        config, shapes = meta_checkpoint(checkpoints, family, changes)
        architecture = find_architecture(config)
        tensors = architecture.tensors(config, shapes)
        fields = {
            **general_fields(architecture.name, "random", 0),
            **architecture.metadata(config),
        }
        empty = [StoredTensor(t.name, t.shape, "F32", nothing) for t in tensors]
        file.write_bytes(header(fields, empty))
        os.truncate(file, predicted_bytes(fields, empty))
        stored = {t.name: t.shape for t in tensors}
        return file, stored, architecture.hyperparameters(config)

    return make


def nothing() -> torch.Tensor:
    raise AssertionError("no data is read in a dry run")


def meta_checkpoint(
    checkpoints: ModuleType, family: str, changes: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    from transformers import AutoModelForCausalLM

    wide = {} if family == "gpt2" else {"hidden_size": 256, "intermediate_size": 512}
    config = checkpoints.random_config(family, **{**wide, **changes})
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    return {**config.to_dict(), "architectures": [type(module).__name__]}, shapes


@pytest.mark.parametrize("case", CASES)
def test_every_mix_is_llama_quantizes(
    case: str, model: Callable[..., tuple[Path, Shapes, Hyperparameters]], llama_cpp: ModuleType
) -> None:
    family, changes = CASES[case]
    file, shapes, hyperparameters = model(family, **changes)
    for mix in MIXES.values():
        for importance in (False, True):
            ours = tensor_types(mix.name, shapes, hyperparameters, importance)
            theirs, demanded = llama_cpp.quantized_types(file, mix.file_type, importance)
            assert ours.types == theirs, (mix.name, importance)
            if not importance:
                assert bool(ours.needs_importance) == demanded, mix.name


@pytest.mark.parametrize("family", ["llama", "qwen2", "smollm3"])
@pytest.mark.parametrize("mix", ["q3_k_s", "q4_k_m"])
def test_70_billion_parameters(
    family: str,
    mix: str,
    model: Callable[..., tuple[Path, Shapes, Hyperparameters]],
    llama_cpp: ModuleType,
) -> None:
    file, shapes, hyperparameters = model(family, num_hidden_layers=80)
    theirs, _ = llama_cpp.quantized_types(file, MIXES[mix].file_type, importance=False)
    ours = tensor_types(mix, shapes, hyperparameters).types
    assert ours == theirs
    assert ("Q5_K" in ours.values()) == (family != "smollm3")


@settings(max_examples=15)
@given(
    family=st.sampled_from(["llama", "qwen3moe", "mixtral", "gpt2", "qwen2"]),
    layers=st.integers(1, 40),
    width=st.sampled_from([32, 48, 64, 96, 256, 512, 768]),
    inner=st.sampled_from([16, 32, 100, 256, 1280]),
    mix=st.sampled_from(sorted(MIXES)),
    importance=st.booleans(),
    experts=st.sampled_from([4, 8]),
)
def test_any_sizes(
    model: Callable[..., tuple[Path, Shapes, Hyperparameters]],
    llama_cpp: ModuleType,
    family: str,
    layers: int,
    width: int,
    inner: int,
    mix: str,
    importance: bool,
    experts: int,
) -> None:
    if family == "gpt2":
        changes = {"n_embd": width, "n_layer": layers, "n_inner": inner}
    else:
        changes = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": inner}
    if family in ("mixtral", "qwen3moe"):
        changes["num_local_experts"] = experts
    file, shapes, hyperparameters = model(family, **changes)
    ours = tensor_types(mix, shapes, hyperparameters, importance)
    theirs, _ = llama_cpp.quantized_types(file, MIXES[mix].file_type, importance)
    assert ours.types == theirs


def test_overrides_are_llama_quantizes(
    model: Callable[..., tuple[Path, Shapes, Hyperparameters]], llama_cpp: ModuleType
) -> None:
    file, shapes, hyperparameters = model("llama", num_hidden_layers=9, intermediate_size=288)
    overrides = [("ffn_down", "q6_k"), (r"blk\.[0-3]\.attn_v", "Q8_0"), ("^output", "f16")]
    numbers = [(e, gguf.GGMLQuantizationType[name.upper()].value) for e, name in overrides]
    ours = tensor_types("q4_k_m", shapes, hyperparameters, False, overrides)
    theirs, _ = llama_cpp.quantized_types(file, MIXES["q4_k_m"].file_type, False, numbers)
    assert ours.types == theirs
    assert ours.types["output.weight"] == "F16"
    assert ours.types["blk.0.ffn_down.weight"] == "Q8_0", "288 is no multiple of 256"


def test_overrides_also_count_where_nothing_else_is_quantized() -> None:
    shapes = {"token_embd.weight": (8, 32), "output.weight": (8, 32)}
    overrides = [("output", "q8_0")]
    found = tensor_types("f16", shapes, Hyperparameters("llama", 1, 1, 1), overrides=overrides)
    assert found.types == {"token_embd.weight": "F16", "output.weight": "Q8_0"}


def test_a_fallback_says_what_it_costs() -> None:
    shapes = {
        "token_embd.weight": (10, 96),
        "blk.0.attn_q.weight": (96, 96),
        "blk.0.ffn_down.weight": (96, 40),
    }
    found = tensor_types("q4_k_s", shapes, Hyperparameters("llama", 1, 4, 4))
    rows = {f.tensor: (f.width, f.wanted, f.used, f.extra_bytes) for f in found.fallbacks}
    assert rows == {
        "token_embd.weight": (96, "Q6_K", "Q8_0", 1020 - 788),
        "blk.0.attn_q.weight": (96, "Q4_K", "Q5_0", 6336 - 5184),
        "blk.0.ffn_down.weight": (40, "Q4_K", "F16", 7680 - 2160),
    }
    assert "attn_q.weight is stored as Q5_0, not Q4_K" in str(found.fallbacks[1])


def test_fallbacks_that_are_alike_are_one_sentence() -> None:
    shapes = {"token_embd.weight": (10, 256), "blk.0.ffn_up.weight": (40, 256)}
    shapes |= {f"blk.{i}.ffn_down.weight": (8 + i, 40) for i in range(3)}
    found = tensor_types("q4_k_s", shapes, Hyperparameters("llama", 3, 4, 4))
    (said,) = summed(found.fallbacks)
    extra = sum(f.extra_bytes for f in found.fallbacks)
    assert said.startswith("blk.0.ffn_down.weight and 2 more are stored as F16, not Q4_K, ")
    assert said.endswith(f" of 256 and not of 40: {extra:,} bytes more")
    assert summed(found.fallbacks[1:2]) == [str(found.fallbacks[1])]


def test_llama_quantize_writes_these_types(
    tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    changes = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 258}
    folder = checkpoints.random_checkpoint(tmp_path / "model", "llama", **changes)
    source = checkpoints.write_f32(folder, tmp_path / "f32.gguf")
    llama_cpp.quantize(source, tmp_path / "small.gguf", MIXES["q4_k_m"].file_type)
    shapes = {t.name: tuple(map(int, reversed(t.shape))) for t in gguf.GGUFReader(source).tensors}
    found = gguf.GGUFReader(tmp_path / "small.gguf").tensors
    ours = tensor_types("q4_k_m", shapes, Hyperparameters("llama", 2, 4, 2))
    assert {t.name: t.tensor_type.name for t in found} == ours.types


@pytest.mark.slow
@pytest.mark.parametrize("mix", [name for name, mix in MIXES.items() if mix.default != "F32"])
def test_llama_quantize_writes_the_types_of_every_mix(
    mix: str, tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    changes = {"hidden_size": 256, "moe_intermediate_size": 256, "vocab_size": 258}
    folder = checkpoints.random_checkpoint(tmp_path / "model", "qwen3moe", **changes)
    source = checkpoints.write_f32(folder, tmp_path / "f32.gguf")
    shapes = {t.name: tuple(map(int, reversed(t.shape))) for t in gguf.GGUFReader(source).tensors}
    importance = {
        name: np.ones(shape[-1] * (shape[0] if len(shape) == 3 else 1), np.float32)
        for name, shape in shapes.items()
    }
    llama_cpp.quantize(source, tmp_path / "small.gguf", MIXES[mix].file_type, importance)
    found = gguf.GGUFReader(tmp_path / "small.gguf").tensors
    ours = tensor_types(mix, shapes, Hyperparameters("qwen3moe", 2, 4, 2, 4), True)
    assert {t.name: t.tensor_type.name for t in found} == ours.types


@pytest.mark.parametrize(
    ("mix", "overrides", "message"),
    [
        ("q4", [], "no precision 'q4' in GGUF; there are: f32, f16"),
        ("q4_k_m", [("attn", "q4"), ("(", "q4_0")], "'q4' is no type.*'\\(' is no regular"),
        ("q4_k_m", [("attn_w", "q8_0"), ("norm", "q8_0")], "which 'attn_w', 'norm' is found"),
    ],
)
def test_a_wrong_order_is_refused(mix: str, overrides: list[tuple[str, str]], message: str) -> None:
    shapes = {"blk.0.attn_q.weight": (256, 256), "blk.0.attn_norm.weight": (256,)}
    with pytest.raises(TargetError, match=message):
        tensor_types(mix, shapes, LLAMA_70B, overrides=overrides)
