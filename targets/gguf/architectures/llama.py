"""llama, and what llama.cpp runs with its code: mistral, mixtral; smollm3."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import Config, Rule, Sizes
from qcompile.targets.gguf.architectures.decoder import Decoder
from qcompile.targets.gguf.architectures.experts import expert_rules

_ROPES = ("default", "linear", "llama3", "yarn")
_NO_ROPE_EVERY = 4


@dataclass(frozen=True)
class Llama(Decoder):
    """llama.cpp's ``llama``: rotates neighbours, so queries and keys are reordered."""

    def _fields(self, config: Config) -> dict[str, Any]:
        sizes = self._sizes(config)
        return {
            **super()._fields(config),
            "vocab_size": sizes.vocabulary,
            "rope.dimension_count": sizes.head_dim,
        }


@dataclass(frozen=True)
class Mixtral(Llama):
    """``llama`` with experts."""

    required: ClassVar[tuple[str, ...]] = (
        *Llama.required,
        "num_local_experts",
        "num_experts_per_tok",
    )

    def _sizes(self, config: Config) -> Sizes:
        return replace(super()._sizes(config), experts=config["num_local_experts"])

    def _fields(self, config: Config) -> dict[str, Any]:
        return {
            **super()._fields(config),
            "expert_count": config["num_local_experts"],
            "expert_used_count": config["num_experts_per_tok"],
        }

    def _feed_forward(self, layer: int, config: Config, names: Collection[str]) -> Iterator[Rule]:
        projections = {"gate": "w1", "up": "w3", "down": "w2"}
        sizes = self._sizes(config)
        yield from expert_rules(layer, sizes, names, "block_sparse_moe", projections)


@dataclass(frozen=True)
class SmolLM3(Llama):
    """``llama`` where every fourth layer rotates nothing."""

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        if config.get("mlp_bias"):
            yield "mlp_bias"
        layers = range(1, config["num_hidden_layers"] + 1)
        every_fourth = [int(layer % _NO_ROPE_EVERY != 0) for layer in layers]
        if list(config.get("no_rope_layers", every_fourth)) != every_fourth:
            yield f"no_rope_layers {config['no_rope_layers']} (possible: every fourth layer)"
        if config.get("no_rope_layer_interval", _NO_ROPE_EVERY) != _NO_ROPE_EVERY:
            yield f"no_rope_layer_interval {config['no_rope_layer_interval']} (possible: 4)"


LLAMA = Llama(
    "llama",
    ("LlamaForCausalLM", "LLaMAForCausalLM"),
    ("llama",),
    {"tie_word_embeddings": False},
    ropes=_ROPES,
    interleaved=True,
    query_bias="asked",
)
MISTRAL = Llama(
    "llama",
    ("MistralForCausalLM",),
    ("mistral",),
    {"tie_word_embeddings": False, "num_key_value_heads": 8},
    ropes=_ROPES,
    interleaved=True,
)
MIXTRAL = Mixtral(
    "llama",
    ("MixtralForCausalLM",),
    ("mixtral",),
    {"tie_word_embeddings": False, "num_key_value_heads": 8, "rope_theta": 1e6},
    ropes=_ROPES,
    interleaved=True,
)
SMOLLM3 = SmolLM3(
    "smollm3",
    ("SmolLM3ForCausalLM",),
    ("smollm3",),
    {"tie_word_embeddings": True, "num_key_value_heads": 4, "rope_theta": 2e6},
    interleaved=True,
)
