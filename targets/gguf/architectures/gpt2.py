"""gpt2: learned positions, layer norms with biases, matrices that are stored ``[in, out]``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import (
    Architecture,
    Config,
    Rule,
    Sizes,
    activation_refusals,
)
from qcompile.targets.gguf.tensors import GgufTensor

_GELU_TANH = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


@dataclass(frozen=True)
class Gpt2(Architecture):
    """GPT-2 and its relatives of the same class."""

    required: ClassVar[tuple[str, ...]] = (
        "n_embd",
        "n_head",
        "n_layer",
        "n_positions",
        "vocab_size",
    )
    factors: ClassVar[tuple[str, ...]] = ("layer_norm_epsilon",)
    ignored: ClassVar[tuple[str, ...]] = (".attn.bias", ".attn.masked_bias")

    def _refusals(self, config: Config) -> Iterator[str]:
        yield from activation_refusals(config, "activation_function", _GELU_TANH)
        if not config.get("scale_attn_weights", True):
            yield "scale_attn_weights=false"
        for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
            if config.get(key):
                yield key

    def _sizes(self, config: Config) -> Sizes:
        width, heads = config["n_embd"], config["n_head"]
        return Sizes(
            layers=config["n_layer"],
            width=width,
            inner=config.get("n_inner", 4 * width),
            heads=heads,
            kv_heads=heads,
            head_dim=width // heads,
            vocabulary=config["vocab_size"],
            context=config["n_positions"],
        )

    def _fields(self, config: Config) -> dict[str, Any]:
        sizes = self._sizes(config)
        return {
            "block_count": sizes.layers,
            "context_length": sizes.context,
            "embedding_length": sizes.width,
            "feed_forward_length": sizes.inner,
            "attention.head_count": sizes.heads,
            "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        }

    def _rules(self, config: Config, names: Collection[str]) -> Iterator[Rule]:
        sizes, start = self._sizes(config), _prefix(names)
        embedding, positions = (sizes.vocabulary, sizes.width), (sizes.context, sizes.width)
        yield _plain("token_embd.weight", f"{start}wte.weight", embedding)
        yield _plain("position_embd.weight", f"{start}wpe.weight", positions)
        for layer in range(sizes.layers):
            yield from _layer(layer, sizes, f"{start}h.{layer}.")
        for end in ("weight", "bias"):
            yield _plain(f"output_norm.{end}", f"{start}ln_f.{end}", (sizes.width,))
        if not config.get("tie_word_embeddings"):
            yield _plain("output.weight", "lm_head.weight", embedding)


def _prefix(names: Collection[str]) -> str:
    """Return what stands before all names: the first checkpoints were saved without it."""
    return "" if "wte.weight" in names else "transformer."


def _layer(layer: int, sizes: Sizes, place: str) -> Iterator[Rule]:
    width = sizes.width
    for name, source, inputs, outputs in (
        ("attn_norm", "ln_1", None, width),
        ("attn_qkv", "attn.c_attn", width, 3 * width),
        ("attn_output", "attn.c_proj", width, width),
        ("ffn_norm", "ln_2", None, width),
        ("ffn_up", "mlp.c_fc", width, sizes.inner),
        ("ffn_down", "mlp.c_proj", sizes.inner, width),
    ):
        into, source = f"blk.{layer}.{name}", f"{place}{source}"
        if inputs is None:
            yield _plain(f"{into}.weight", f"{source}.weight", (outputs,))
        else:
            shape = (outputs, inputs)
            tensor = GgufTensor(f"{into}.weight", shape, (f"{source}.weight",), transposed=True)
            yield Rule(tensor, (inputs, outputs))
        yield _plain(f"{into}.bias", f"{source}.bias", (outputs,))


def _plain(name: str, source: str, shape: tuple[int, ...]) -> Rule:
    return Rule(GgufTensor(name, shape, (source,)), shape)


GPT2 = Gpt2(
    "gpt2",
    ("GPT2LMHeadModel",),
    ("gpt2",),
    {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5},
)
