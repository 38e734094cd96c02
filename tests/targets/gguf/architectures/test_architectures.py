"""What configurations and checkpoints are refused, and what the fields of a file are."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from qcompile.compiler.ir.errors import ModelError, UnsupportedError
from qcompile.targets.gguf.architectures import ARCHITECTURES, find_architecture
from qcompile.targets.gguf.architectures.rope import Rope

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 12,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 16,
}
LLAMA_SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    **{f"model.layers.0.self_attn.{letter}_proj.weight": (8, 8) for letter in "qkvo"},
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
}


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    config = {"architectures": ["MambaForCausalLM"], "model_type": "llama"}
    with pytest.raises(
        UnsupportedError, match=r"'MambaForCausalLM' as GGUF; possible: Llama.*GPT2"
    ):
        find_architecture(config)
    with pytest.raises(UnsupportedError, match="of type 'mamba'"):
        find_architecture({"model_type": "mamba"})


def test_a_configuration_that_names_no_class_is_found_by_its_type() -> None:
    assert find_architecture({"model_type": "gemma3_text"}).name == "gemma3"


def test_every_class_and_type_is_one_architectures() -> None:
    classes = [name for found in ARCHITECTURES for name in found.classes]
    types = [name for found in ARCHITECTURES for name in found.model_types]
    assert len(classes) == len(set(classes))
    assert len(types) == len(set(types))


def test_the_fields_of_a_llama() -> None:
    config = {**LLAMA, "rope_theta": 500000, "num_key_value_heads": 1}
    assert find_architecture(config).metadata(config) == {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": 8,
        "llama.feed_forward_length": 12,
        "llama.attention.head_count": 2,
        "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 500000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.attention.key_length": 4,
        "llama.attention.value_length": 4,
        "llama.vocab_size": 16,
        "llama.rope.dimension_count": 4,
    }


def test_all_that_does_not_fit_the_configuration_is_named() -> None:
    shapes: dict[str, tuple[int, ...]] = {**LLAMA_SHAPES, "model.layers.1.extra.weight": (1,)}
    del shapes["model.norm.weight"], shapes["model.layers.0.self_attn.k_proj.weight"]
    shapes["lm_head.weight"] = (15, 8)
    with pytest.raises(ModelError) as caught:
        find_architecture(LLAMA).tensors(LLAMA, shapes)
    message = str(caught.value)
    assert "2 missing (model.layers.0.self_attn.k_proj.weight, model.norm.weight)" in message
    assert "1 of another shape (lm_head.weight [15, 8], not [16, 8])" in message
    assert "1 not known (model.layers.1.extra.weight)" in message


def test_a_tied_output_is_not_stored_twice() -> None:
    architecture = find_architecture(LLAMA)
    shapes = {**LLAMA_SHAPES, "model.layers.0.self_attn.rotary_emb.inv_freq": (2,)}
    untied = [t.name for t in architecture.tensors(LLAMA, shapes)]
    tied = [t.name for t in architecture.tensors({**LLAMA, "tie_word_embeddings": True}, shapes)]
    assert [name for name in untied if name not in tied] == ["output.weight"]


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_with_and_without_a_prefix(prefix: str, checkpoints: ModuleType) -> None:
    config, shapes = of_family(checkpoints, "gpt2")
    named = {name.replace("transformer.", prefix): shape for name, shape in shapes.items()}
    buffers = {f"{prefix}h.0.attn.bias": (1, 1, 64, 64)}
    found = find_architecture(config).tensors(config, {**named, **buffers})
    assert found[0].sources == (f"{prefix}wte.weight",)
    assert next(t for t in found if t.name == "blk.0.attn_qkv.weight").shape == (144, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "lacks hidden_size, which llama needs"),
        ({"vocab_size": None, "rms_norm_eps": None}, "lacks vocab_size, rms_norm_eps"),
        ({"num_hidden_layers": 0, "vocab_size": "8"}, "num_hidden_layers = 0, vocab_size = '8'"),
        ({"num_key_value_heads": 3}, "num_attention_heads = 2, num_key_value_heads = 3"),
        ({"head_dim": 3}, "head_dim = 3"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps = '1e-5'"),
        ({"sliding_window": 1.5}, "sliding_window = 1.5"),
        ({"rope_scaling": "linear"}, "'linear' for the rope's parameters"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor = '2'"),
        ({"rope_theta": -1}, "rope_theta = -1"),
        ({"num_attention_heads": 20}, "head_dim = 0"),
    ],
)
def test_sizes_that_no_model_has(changes: dict[str, Any], message: str) -> None:
    config = {**LLAMA, **changes}
    with pytest.raises(ModelError, match=message):
        find_architecture(config).check(config)


YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "changes", "refused"),
    [
        ("llama", {"hidden_act": "gelu"}, ["hidden_act 'gelu' (possible: silu)"]),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_parameters": None},
            ["rope type 'dynamic' (possible: default, linear, llama3, yarn)"],
        ),
        ("llama", {"quantization_config": {"bits": 4}}, ["is quantized already"]),
        ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.0}}, ["attention_factor"]),
        ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3"}}, ["rope type 'llama3'"]),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn"}}, ["without factor, original_max"]),
        ("qwen2", {"head_dim": 8}, ["head_dim 8"]),
        ("qwen3", {"attention_bias": True}, ["attention_bias"]),
        (
            "qwen3moe",
            {"norm_topk_prob": False, "mlp_only_layers": [0]},
            ["norm_topk_prob=false", "layers without experts"],
        ),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, ["no_rope_layers [1, 1, 1, 1]"]),
        (
            "gemma2",
            {"query_pre_attn_scalar": 256, "attn_logit_softcapping": None},
            ["query_pre_attn_scalar 256 (possible: 16)", "attn_logit_softcapping=None"],
        ),
        ("gemma2", {"tie_word_embeddings": False}, ["tie_word_embeddings=False"]),
        ("gemma3", {"layer_types": ["full_attention"] * 6}, ["layer_types (possible: the last"]),
        ("phi3-longrope", {"hidden_size": 64}, ["3 numbers in long_factor (possible: 4)"]),
        (
            "gpt2",
            {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True},
            ["activation_function 'relu'", "scale_attn_by_inverse_layer_idx"],
        ),
    ],
)
def test_features_that_llama_cpp_has_not_got(
    family: str, changes: dict[str, Any], refused: list[str], checkpoints: ModuleType
) -> None:
    config = {**of_family(checkpoints, family)[0], **changes}
    with pytest.raises(UnsupportedError) as caught:
        find_architecture(config).check(config)
    assert all(reason in str(caught.value) for reason in refused), str(caught.value)


def test_every_family_is_stored(checkpoints: ModuleType) -> None:
    """By the names of transformers' own modules; nothing of them is left over, nothing missing."""
    for family in checkpoints.FAMILIES:
        config, shapes = of_family(checkpoints, family)
        architecture = find_architecture(config)
        architecture.check(config)
        assert architecture.tensors(config, shapes)
        assert all(key.startswith(f"{architecture.name}.") for key in architecture.metadata(config))


def test_configurations_of_old_and_new_transformers_say_the_same() -> None:
    scaling = {"type": "linear", "factor": 2}
    old = {**LLAMA, "rope_theta": 7, "rope_scaling": scaling}
    new = {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7.0}}
    architecture = find_architecture(old)
    assert architecture.metadata(old) == architecture.metadata(new)


def test_old_and_new_configurations_of_gemma3_say_the_same() -> None:
    gemma = {**LLAMA, "architectures": ["Gemma3ForCausalLM"], "num_key_value_heads": 1}
    old = {**gemma, "rope_theta": 9.0, "rope_local_base_freq": 3.0}
    local = {"sliding_attention": {"rope_theta": 3.0}, "full_attention": {"rope_theta": 9.0}}
    new = {**gemma, "rope_parameters": local}
    architecture = find_architecture(gemma)
    assert architecture.metadata(old) == architecture.metadata(new)
    assert architecture.metadata(new)["gemma3.rope.freq_base"] == 9.0
    assert architecture.metadata(new)["gemma3.rope.freq_base_swa"] == 3.0


def test_llama3_frequencies_are_transformers(checkpoints: ModuleType) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = checkpoints.random_config("llama3", head_dim=64, hidden_size=256)
    frequencies, scale = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    factors = Rope.of(config.to_dict()).llama3_factors(64)
    plain = 500.0 ** (-torch.arange(0, 64, 2) / 64)
    assert scale == 1.0
    assert min(factors) == 1.0
    assert max(factors) == 8.0
    torch.testing.assert_close(plain / torch.tensor(factors), frequencies)


def test_a_phi3_that_says_all_of_its_rope_beside_the_scaling() -> None:
    """As configurations before transformers 5 do; a part of each head is rotated."""
    longrope = {"type": "longrope", "long_factor": [2.0] * 3, "short_factor": [1.0] * 3}
    config = {
        **LLAMA,
        "architectures": ["Phi3ForCausalLM"],
        "hidden_size": 16,
        "rope_scaling": longrope,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 32,
    }
    architecture = find_architecture(config)
    architecture.check(config)
    fields = architecture.metadata(config)
    assert fields["phi3.rope.dimension_count"] == 6
    assert fields["phi3.rope.scaling.original_context_length"] == 32
    # transformers: sqrt(1 + ln(64 / 32) / ln 32)
    assert fields["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + 1 / 5) ** 0.5)
    assert any("the long factors" in note for note in architecture.notes(config))


def test_a_window_that_llama_cpp_does_not_keep_is_noted(checkpoints: ModuleType) -> None:
    config = of_family(checkpoints, "mistral")[0]
    architecture = find_architecture(config)
    (note,) = architecture.notes({**config, "sliding_window": 16})
    assert "the last 16 tokens" in note
    assert architecture.notes({**config, "sliding_window": 64}) == ()
    kept = of_family(checkpoints, "gemma3")[0]
    assert find_architecture(kept).notes(kept) == ()


def of_family(
    checkpoints: ModuleType, family: str
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return a configuration, and the shapes of the module that it describes."""
    from transformers import AutoModelForCausalLM

    config = checkpoints.random_config(family)
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    return {**config.to_dict(), "architectures": [type(module).__name__]}, shapes
