"""Small random checkpoints of every family, as Hugging Face directories, and their files as f32 GGUF."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.architectures import find_architecture
from qcompile.targets.gguf.container import StoredTensor, write_gguf
from qcompile.targets.gguf.general import general_fields

_DECODER = {
    "vocab_size": 272,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LOCAL_GLOBAL = {
    "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}
_EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 3.0],
    "partial_rotary_factor": 0.5,
    "original_max_position_embeddings": 32,
}

# Model type, and what differs from ``_DECODER``.
FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama3": ("llama", {"rope_parameters": _LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "mistral": ("mistral", {"head_dim": 20}),
    "mixtral": ("mixtral", _EXPERTS),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": _YARN}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3moe": (
        "qwen3_moe",
        {**_EXPERTS, "head_dim": 16, "moe_intermediate_size": 40, "norm_topk_prob": True},
    ),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "num_hidden_layers": 6,
            "rope_parameters": _LOCAL_GLOBAL,
        },
    ),
    "phi3": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "phi3-longrope": ("phi3", {"rope_parameters": _LONGROPE}),
    "gpt2": (
        "gpt2",
        {"n_embd": 48, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 272},
    ),
}
_GPT2_KEYS = ("bos_token_id", "eos_token_id")


def random_checkpoint(folder: Path, family: str, seed: int = 0, **changes: Any) -> Path:
    """Save a small random model of a family, with a byte-level tokenizer.

    Args:
        folder: Made if it is not there.
        family: Of ``FAMILIES``.
        seed: Of the weights.
        changes: Keys of the configuration.

    Returns:
        The folder.
    """
    from transformers import AutoModelForCausalLM

    config = random_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _fill(model, seed)
    model.save_pretrained(folder)
    _save_tokenizer(folder)
    return folder


def random_config(family: str, **changes: Any) -> Any:
    """Return the configuration of a family with changes."""
    from transformers import AutoConfig

    kind, own = FAMILIES[family]
    shared = {key: _DECODER[key] for key in _GPT2_KEYS} if kind == "gpt2" else _DECODER
    return AutoConfig.for_model(kind, **{**shared, **own, **changes})


def torch_logits(folder: Path, tokens: list[int]) -> Tensor:
    """Return what PyTorch computes, ``[tokens, vocabulary]``."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def opened(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """Return a checkpoint's configuration, the shapes of its tensors, and what reads one."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = safe_open(folder / "model.safetensors", "pt")
    shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return config, shapes, weights.get_tensor


def write_f32(folder: Path, file: Path) -> Path:
    """Store a checkpoint of one file as GGUF in f32; the vocabulary is of bytes."""
    config, shapes, read = opened(folder)
    architecture = find_architecture(config)
    architecture.check(config)
    tensors = [
        StoredTensor(t.name, t.shape, "F32", lambda t=t: f32_rows(t.numbers(read)))
        for t in architecture.tensors(config, shapes)
    ]
    fields = {
        **general_fields(architecture.name, "random", 0),
        **architecture.metadata(config),
        **byte_vocabulary(config["vocab_size"]),
    }
    write_gguf(file, fields, tensors)
    return file


def f32_rows(values: Tensor) -> Tensor:
    """Return numbers as a file holds them."""
    return BLOCK_FORMATS["F32"].encode(values.reshape(-1, values.shape[-1]))


def byte_vocabulary(size: int) -> dict[str, Any]:
    """Return the fields of a byte-level vocabulary: 256 bytes, one merge, an end, and padding."""
    tokens = list(_BYTES.values())
    tokens = [*tokens, "<|endoftext|>", tokens[ord("a")] + tokens[ord("b")]][:size]
    padding = [f"[PAD{i}]" for i in range(len(tokens), size)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *padding],
        "tokenizer.ggml.token_type": [1] * 256 + [3, 1] + [5] * len(padding),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 256,
    }


def _byte_letters() -> dict[int, str]:
    """Return GPT-2's letter of each byte, in order of the bytes."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown}
    letters |= {byte: chr(256 + index) for index, byte in enumerate(hidden)}
    return dict(sorted(letters.items()))


_BYTES = _byte_letters()


def _fill(model: torch.nn.Module, seed: int) -> None:
    """Draw weights that make every part of the model matter, norms and biases too."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        noise = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 1:
            base = weight.data if "norm" in name or "ln_" in name else 0.0
            weight.data = base + 0.3 * noise
        elif "wpe" in name or "wte" in name or "embed" in name:
            weight.data = noise
        else:
            weight.data = noise * (1.5 / weight.shape[-1] ** 0.5)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    fields = byte_vocabulary(258)
    words = {t: i for i, t in enumerate(fields["tokenizer.ggml.tokens"])}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    end = AddedToken("<|endoftext|>", special=True, normalized=False)
    entry = {"id": 256, "content": end.content, "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    data["added_tokens"] = [{**entry, **flags}]
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end.content}
    settings["bos_token"] = end.content
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
