"""gemma2, and the text models of gemma3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import Config, Rule
from qcompile.targets.gguf.architectures.decoder import Decoder
from qcompile.targets.gguf.architectures.rope import Rope

_LOCAL = "sliding_attention"
_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True)
class Gemma(Decoder):
    """Norms before and after each part, whose factors are 1 + w; every so many layers see all tokens.

    Args:
        pattern: The last of so many layers sees all tokens, the others a window.
        widest: Layers of the one size (27B) whose queries llama.cpp scales by the width of a head's share
            of the stream instead of ``head_dim``.
    """

    pattern: int = field(kw_only=True)
    widest: int = field(kw_only=True)

    factors: ClassVar[tuple[str, ...]] = (*Decoder.factors, "query_pre_attn_scalar")
    activations: ClassVar[tuple[str, str]] = ("hidden_activation", "gelu_pytorch_tanh")
    norms: ClassVar[Mapping[str, str]] = {
        "attn_norm.weight": "input_layernorm.weight",
        "post_attention_norm.weight": "post_attention_layernorm.weight",
        "ffn_norm.weight": "pre_feedforward_layernorm.weight",
        "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    }
    norm_shift: ClassVar[float] = 1.0

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        yield from self._layer_refusals(config)
        sizes = self._sizes(config)
        widest = sizes.layers == self.widest
        scale = sizes.width // sizes.heads if widest else sizes.head_dim
        if config["query_pre_attn_scalar"] != scale:
            yield f"query_pre_attn_scalar {config['query_pre_attn_scalar']} (possible: {scale})"
        if config.get("use_bidirectional_attention"):
            yield "use_bidirectional_attention"

    def _layer_refusals(self, config: Config) -> Iterator[str]:
        layers = range(1, config["num_hidden_layers"] + 1)
        expected = [_LOCAL if layer % self.pattern else "full_attention" for layer in layers]
        known = f"(possible: the last of every {self.pattern} layers has full attention)"
        if list(config.get("layer_types", expected)) != expected:
            yield f"layer_types {known}"
        for key in ("sliding_window_pattern", "_sliding_window_pattern"):
            if config.get(key, self.pattern) != self.pattern:
                yield f"{key} {config[key]} {known}"

    def _notes(self, config: Config) -> Iterator[str]:
        yield from ()


@dataclass(frozen=True)
class Gemma2(Gemma):
    """Scores and logits are capped softly."""

    factors: ClassVar[tuple[str, ...]] = (*Gemma.factors, *_CAPS)

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        given = (*_CAPS, "tie_word_embeddings")
        yield from (f"{key}={config.get(key)}" for key in given if not config.get(key))

    def _fields(self, config: Config) -> dict[str, Any]:
        return {
            **super()._fields(config),
            **{key: float(config[key]) for key in _CAPS},
            "attention.sliding_window": config["sliding_window"],
        }

    def _full(self, config: Config) -> Config:
        off = {key: None for key in _CAPS if key in config and config[key] is None}
        return {**super()._full(config), **off}


@dataclass(frozen=True)
class Gemma3(Gemma):
    """Norms of queries and keys; layers with a window have frequencies of their own."""

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from super()._refusals(config)
        yield from (f"{reason} of layers with a window" for reason in self._local_refusals(config))
        if config.get("attn_logit_softcapping"):
            yield "attn_logit_softcapping"

    def _local_refusals(self, config: Config) -> Iterator[str]:
        if _LOCAL in (config.get("rope_parameters") or {}):
            yield from Rope.of(config, _LOCAL).refusals(("default",))

    def _fields(self, config: Config) -> dict[str, Any]:
        fields = {
            **super()._fields(config),
            "rope.freq_base_swa": self._local_base(config),
            "attention.sliding_window": config["sliding_window"],
        }
        cap = config.get("final_logit_softcapping")
        return {**fields, "final_logit_softcapping": float(cap)} if cap else fields

    def _local_base(self, config: Config) -> float:
        if _LOCAL in (config.get("rope_parameters") or {}):
            return Rope.of(config, _LOCAL).base
        return float(config["rope_local_base_freq"])

    def _attention(self, layer: int, config: Config) -> Iterator[Rule]:
        yield from super()._attention(layer, config)
        yield from self._head_norms(layer, self._sizes(config))


_DEFAULTS = {
    "tie_word_embeddings": True,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rms_norm_eps": 1e-6,
}

GEMMA2 = Gemma2(
    "gemma2",
    ("Gemma2ForCausalLM",),
    ("gemma2",),
    {**_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ropes=("default",),
    pattern=2,
    widest=46,
)
GEMMA3 = Gemma3(
    "gemma3",
    ("Gemma3ForCausalLM",),
    ("gemma3_text",),
    {
        **_DEFAULTS,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    ropes=("default", "linear"),
    pattern=6,
    widest=62,
)
