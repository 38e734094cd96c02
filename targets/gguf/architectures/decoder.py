"""What llama, qwen, gemma and their like share: names of tensors, sizes, and rotary embeddings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import (
    Architecture,
    Config,
    Rule,
    Sizes,
    activation_refusals,
    renamed,
    window_note,
)
from qcompile.targets.gguf.architectures.rope import Rope
from qcompile.targets.gguf.tensors import GgufTensor, Interleaved, RowMap


@dataclass(frozen=True)
class Decoder(Architecture):
    """A decoder of attention and gated feed-forward blocks with rotary embeddings and RMS norms.

    Args:
        ropes: Kinds of rotary embeddings that llama.cpp computes here.
        interleaved: llama.cpp rotates neighbours: rows of queries and keys are reordered.
        query_bias: The attention's biases: ``never``, ``always`` (queries, keys, values), or ``asked``
            (``attention_bias``: of the output too).
    """

    ropes: tuple[str, ...] = ("default", "linear", "yarn")
    interleaved: bool = False
    query_bias: str = "never"

    factors: ClassVar[tuple[str, ...]] = ("rms_norm_eps",)
    activations: ClassVar[tuple[str, str]] = ("hidden_act", "silu")
    norms: ClassVar[Mapping[str, str]] = {
        "attn_norm.weight": "input_layernorm.weight",
        "ffn_norm.weight": "post_attention_layernorm.weight",
    }
    partial_rope: ClassVar[bool] = False
    """Whether llama.cpp can rotate a part of a head."""
    norm_shift: ClassVar[float] = 0.0
    """What the checkpoint's norms leave out of their factors."""

    def _refusals(self, config: Config) -> Iterator[str]:
        key, activation = self.activations
        yield from activation_refusals(config, key, (activation,))
        yield from Rope.of(config).refusals(self.ropes, self.partial_rope)
        if config.get("attention_bias") and self.query_bias != "asked":
            yield "attention_bias"

    def _fields(self, config: Config) -> dict[str, Any]:
        sizes = self._sizes(config)
        return {
            "block_count": sizes.layers,
            "context_length": sizes.context,
            "embedding_length": sizes.width,
            "feed_forward_length": config["intermediate_size"],
            "attention.head_count": sizes.heads,
            "attention.head_count_kv": sizes.kv_heads,
            **Rope.of(config).fields(),
            "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "attention.key_length": sizes.head_dim,
            "attention.value_length": sizes.head_dim,
        }

    def _rules(self, config: Config, names: Collection[str]) -> Iterator[Rule]:
        sizes = self._sizes(config)
        embedding = (sizes.vocabulary, sizes.width)
        yield _named("token_embd.weight", embedding, "model.embed_tokens.weight")
        for layer in range(sizes.layers):
            yield from self._layer(layer, config, names)
        yield self._norm("output_norm.weight", sizes.width, "model.norm.weight")
        if not config.get("tie_word_embeddings"):
            yield _named("output.weight", embedding, "lm_head.weight")
        yield from self._computed(config)

    def _layer(self, layer: int, config: Config, names: Collection[str]) -> Iterator[Rule]:
        sizes = self._sizes(config)
        for name, source in self.norms.items():
            yield self._norm(f"blk.{layer}.{name}", sizes.width, f"model.layers.{layer}.{source}")
        yield from self._attention(layer, config)
        yield from self._feed_forward(layer, config, names)

    def _attention(self, layer: int, config: Config) -> Iterator[Rule]:
        sizes = self._sizes(config)
        biased = self.query_bias == "always" or bool(config.get("attention_bias"))
        for letter, rows, heads in (
            ("q", sizes.queries, sizes.heads),
            ("k", sizes.keys, sizes.kv_heads),
            ("v", sizes.keys, None),
        ):
            order = Interleaved(heads) if self.interleaved and heads else None
            name, source = f"attn_{letter}", f"self_attn.{letter}_proj"
            yield _projection(
                layer, f"{name}.weight", f"{source}.weight", (rows, sizes.width), order
            )
            if biased:
                yield _projection(layer, f"{name}.bias", f"{source}.bias", (rows,), order)
        output = [("attn_output.weight", "self_attn.o_proj.weight", (sizes.width, sizes.queries))]
        yield from renamed(layer, output)
        if biased and self.query_bias == "asked":
            yield from renamed(
                layer, [("attn_output.bias", "self_attn.o_proj.bias", (sizes.width,))]
            )

    def _feed_forward(self, layer: int, config: Config, names: Collection[str]) -> Iterator[Rule]:
        sizes = self._sizes(config)
        up, down = (sizes.inner, sizes.width), (sizes.width, sizes.inner)
        for part, shape in (("gate", up), ("up", up), ("down", down)):
            yield from renamed(layer, [(f"ffn_{part}.weight", f"mlp.{part}_proj.weight", shape)])
            if config.get("mlp_bias"):
                yield from renamed(
                    layer, [(f"ffn_{part}.bias", f"mlp.{part}_proj.bias", shape[:1])]
                )

    def _computed(self, config: Config) -> Iterator[Rule]:
        """Yield tensors that are computed from the configuration."""
        rope, sizes = Rope.of(config), self._sizes(config)
        if rope.kind == "llama3":
            factors = rope.llama3_factors(sizes.head_dim)
            yield Rule(GgufTensor("rope_freqs.weight", (len(factors),), values=factors))

    def _notes(self, config: Config) -> Iterator[str]:
        if config.get("use_sliding_window", True):
            yield from window_note(config, config.get("sliding_window"), "this model")

    def _norm(self, name: str, width: int, source: str) -> Rule:
        return Rule(GgufTensor(name, (width,), (source,), shift=self.norm_shift), (width,))

    def _head_norms(self, layer: int, sizes: Sizes) -> Iterator[Rule]:
        """Yield the norms of queries and keys, where an architecture has them."""
        for letter in "qk":
            yield self._norm(
                f"blk.{layer}.attn_{letter}_norm.weight",
                sizes.head_dim,
                f"model.layers.{layer}.self_attn.{letter}_norm.weight",
            )


def whole_width_refusals(sizes: Sizes) -> Iterator[str]:
    """Yield heads that do not make up the width, where llama.cpp takes it that they do."""
    if sizes.queries != sizes.width:
        yield f"head_dim {sizes.head_dim} (possible: hidden_size / num_attention_heads)"


def _named(name: str, shape: tuple[int, ...], source: str) -> Rule:
    return Rule(GgufTensor(name, shape, (source,)), shape)


def _projection(
    layer: int, name: str, source: str, shape: tuple[int, ...], order: RowMap | None
) -> Rule:
    place = f"model.layers.{layer}.{source}"
    return Rule(GgufTensor(f"blk.{layer}.{name}", shape, (place,), order), shape)
