"""Random Hugging Face checkpoints of Llama's shape, as large as one likes, with a tokenizer that works.

Weights are bfloat16: normal numbers of the deviation that such models start from, times a factor for
each row and each column, so that neither rows nor columns are alike. The residual stream begins at 1, and
what layers add to it is divided by the root of their number, as in GPT-2: else many random layers make
noise of any rounding. The seed and a tensor's place give its numbers; shards are written one by one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
DEVIATION = 0.02
EMBEDDING = 1.0
RESIDUAL = ("o_proj.weight", "down_proj.weight")
SPREAD = 0.3
"""Deviation of the logarithm of the factors of rows and columns."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama.

    Args:
        hidden: Width of the residual stream.
        ffn: Of the layers between.
        heads: Of attention.
        kv_heads: That share keys and values.
        layers: How many.
        vocabulary: Rows of the embedding; the tokenizer may have fewer.
        tied: Whether the output layer is the embedding.
    """

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int = 32000
    tied: bool = False

    def tensors(self) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
        """Yield the tensors of each shard: the embedding, each layer, the rest."""
        yield [("model.embed_tokens.weight", (self.vocabulary, self.hidden))]
        for number in range(self.layers):
            yield [(f"model.layers.{number}.{n}.weight", s) for n, s in self._layer().items()]
        last: list[tuple[str, tuple[int, ...]]] = [("model.norm.weight", (self.hidden,))]
        yield last if self.tied else [*last, ("lm_head.weight", (self.vocabulary, self.hidden))]

    def _layer(self) -> dict[str, tuple[int, ...]]:
        wide, keys = self.hidden, self.hidden // self.heads * self.kv_heads
        return {
            "input_layernorm": (wide,),
            "self_attn.q_proj": (wide, wide),
            "self_attn.k_proj": (keys, wide),
            "self_attn.v_proj": (keys, wide),
            "self_attn.o_proj": (wide, wide),
            "post_attention_layernorm": (wide,),
            "mlp.gate_proj": (self.ffn, wide),
            "mlp.up_proj": (self.ffn, wide),
            "mlp.down_proj": (wide, self.ffn),
        }

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(shape) for shard in self.tensors() for _, shape in shard)

    def config(self) -> dict[str, object]:
        """Return ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "num_hidden_layers": self.layers,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": 0,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }


def write_checkpoint(folder: Path, shape: Shape, tokenizer: Path, *, seed: int = 0) -> int:
    """Write a checkpoint; one of the same shape and seed that is there already stays.

    Args:
        folder: For its files.
        shape: Of the model.
        tokenizer: A directory whose tokenizer it gets.
        seed: Of the numbers.

    Returns:
        Bytes of all shards.
    """
    marker, wanted = folder / "made.json", json.dumps({**asdict(shape), "seed": seed})
    if not (marker.exists() and marker.read_text() == wanted):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, shape, seed)
        for name in TOKENIZER:
            shutil.copyfile(tokenizer / name, folder / name)
        (folder / "config.json").write_text(json.dumps(shape.config()))
        marker.write_text(wanted)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _write(folder: Path, shape: Shape, seed: int) -> None:
    shards = list(shape.tensors())
    places: dict[str, str] = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        numbers = {
            n: _random(s, (seed, number, i), _deviation(n, shape)) for i, (n, s) in enumerate(shard)
        }
        save_file(numbers, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(numbers, file))
    index = {"metadata": {"total_size": 2 * shape.parameters}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _deviation(name: str, shape: Shape) -> float:
    if "embed_tokens" in name:
        return EMBEDDING
    return DEVIATION / math.sqrt(2 * shape.layers) if name.endswith(RESIDUAL) else DEVIATION


def _random(shape: tuple[int, ...], place: tuple[int, int, int], deviation: float) -> Tensor:
    """Return a tensor's numbers; a vector is a norm's weight, around 1."""
    seed, shard, index = place
    generator = torch.Generator().manual_seed((seed * 10_000 + shard) * 100 + index)

    def factors(size: int) -> Tensor:
        return torch.randn(size, generator=generator).mul_(SPREAD).exp_()

    if len(shape) == 1:
        return factors(shape[0]).bfloat16()
    rows, columns = factors(shape[0]), factors(shape[1])
    found = torch.empty(shape, dtype=torch.bfloat16)
    for part, scale in zip(found.split(1024), rows.split(1024), strict=True):
        numbers = torch.randn(part.shape, generator=generator)
        part.copy_(numbers.mul_(deviation * columns).mul_(scale[:, None]))
    return found
