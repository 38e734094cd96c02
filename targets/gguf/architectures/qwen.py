"""qwen2, qwen3 and its mixture of experts."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import Config, Rule, Sizes
from qcompile.targets.gguf.architectures.decoder import Decoder, whole_width_refusals
from qcompile.targets.gguf.architectures.experts import PROJECTIONS, expert_rules


@dataclass(frozen=True)
class Qwen2(Decoder):
    """Biases of queries, keys and values."""

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        yield from whole_width_refusals(self._sizes(config))

    def _notes(self, config: Config) -> Iterator[str]:
        if config.get("use_sliding_window"):
            yield from super()._notes(config)


@dataclass(frozen=True)
class Qwen3(Decoder):
    """Norms of queries and keys, no biases."""

    def _attention(self, layer: int, config: Config) -> Iterator[Rule]:
        yield from super()._attention(layer, config)
        yield from self._head_norms(layer, self._sizes(config))

    def _notes(self, config: Config) -> Iterator[str]:
        if config.get("use_sliding_window"):
            yield from super()._notes(config)


@dataclass(frozen=True)
class Qwen3Moe(Qwen3):
    """qwen3 with experts in every layer."""

    required: ClassVar[tuple[str, ...]] = (
        *Qwen3.required,
        "moe_intermediate_size",
        "num_experts",
        "num_experts_per_tok",
    )

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        if not config.get("norm_topk_prob"):
            yield "norm_topk_prob=false"
        if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
            yield "layers without experts (mlp_only_layers, decoder_sparse_step)"

    def _sizes(self, config: Config) -> Sizes:
        inner, experts = config["moe_intermediate_size"], config["num_experts"]
        return replace(super()._sizes(config), inner=inner, experts=experts)

    def _fields(self, config: Config) -> dict[str, Any]:
        return {
            **super()._fields(config),
            "expert_count": config["num_experts"],
            "expert_used_count": config["num_experts_per_tok"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }

    def _feed_forward(self, layer: int, config: Config, names: Collection[str]) -> Iterator[Rule]:
        yield from expert_rules(layer, self._sizes(config), names, "mlp", PROJECTIONS)

    def _full(self, config: Config) -> Config:
        renamed = {"num_experts": config.get("num_local_experts"), **config}
        return super()._full(renamed)


QWEN2 = Qwen2(
    "qwen2",
    ("Qwen2ForCausalLM",),
    ("qwen2",),
    {"tie_word_embeddings": False, "num_key_value_heads": 32},
    query_bias="always",
)
QWEN3 = Qwen3(
    "qwen3",
    ("Qwen3ForCausalLM",),
    ("qwen3",),
    {"tie_word_embeddings": False, "num_key_value_heads": 32, "head_dim": 128},
)
QWEN3_MOE = Qwen3Moe(
    "qwen3moe",
    ("Qwen3MoeForCausalLM",),
    ("qwen3_moe",),
    {"tie_word_embeddings": False, "num_key_value_heads": 4},
)
