"""A language model with outliers: the same function, and channels of its norms many times as large.

For every norm whose consumers are linear layers of their own, some channels of its weight are multiplied by
random factors, and the columns of its consumers are divided by them. The final norm stays: its consumer is
the table of embeddings, which is tied.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARE = 0.01
FACTORS = (10.0, 50.0)
SEED = 0
CONSUMERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
WEIGHTS = "model.safetensors"


def write_outliers(model: Path, folder: Path) -> int:
    """Write a Llama's directory anew, in float32 so that nothing is rounded.

    Args:
        model: A Hugging Face directory with one file of weights.
        folder: To write.

    Returns:
        The number of channels that were multiplied.
    """
    shutil.copytree(model, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    weights = {name: value.float() for name, value in load_file(model / WEIGHTS).items()}
    count = multiply(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2))
    return count


def multiply(weights: dict[str, Tensor]) -> int:
    """Multiply channels of norms in place, divide their consumers; return how many channels."""
    generator = torch.Generator().manual_seed(SEED)
    low, high = FACTORS
    count = 0
    for name in sorted(weights):
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        if norm not in CONSUMERS:
            continue
        size = len(weights[name])
        chosen = torch.randperm(size, generator=generator)[: math.ceil(SHARE * size)]
        factors = torch.ones(size)
        factors[chosen] = low + (high - low) * torch.rand(len(chosen), generator=generator)
        weights[name] = weights[name] * factors
        for consumer in CONSUMERS[norm]:
            weights[f"{layer}.{consumer}.weight"] /= factors
        count += len(chosen)
    return count
