"""phi3: queries, keys and values in one matrix, gate and up in another; they stay so."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from qcompile.targets.gguf.architectures.base import Config, Rule, Sizes, renamed
from qcompile.targets.gguf.architectures.decoder import Decoder, whole_width_refusals
from qcompile.targets.gguf.architectures.rope import Rope
from qcompile.targets.gguf.tensors import GgufTensor


@dataclass(frozen=True)
class Phi3(Decoder):
    """Two sets of factors of the frequencies, for short and for long contexts."""

    partial_rope: ClassVar[bool] = True

    def _refusals(self, config: Config) -> Iterator[str]:
        rope, sizes = Rope.of(config), self._sizes(config)
        yield from super()._refusals(config)
        yield from whole_width_refusals(sizes)
        half = _rotated(rope, sizes) // 2
        for key in ("long_factor", "short_factor"):
            if rope.kind == "longrope" and len(rope.parameters.get(key, range(half))) != half:
                yield f"{len(rope.parameters[key])} numbers in {key} (possible: {half})"

    def _fields(self, config: Config) -> dict[str, Any]:
        rope, sizes = Rope.of(config), self._sizes(config)
        fields = super()._fields(config)
        fields["rope.dimension_count"] = _rotated(rope, sizes)
        fields["attention.sliding_window"] = config.get("sliding_window", 0)
        original = rope.parameters.get("original_max_position_embeddings", sizes.context)
        fields["rope.scaling.original_context_length"] = int(original)
        if rope.kind == "longrope":
            fields["rope.scaling.attn_factor"] = rope.longrope_scale(sizes.context)
        return fields

    def _attention(self, layer: int, config: Config) -> Iterator[Rule]:
        sizes = self._sizes(config)
        fused = (sizes.queries + 2 * sizes.keys, sizes.width)
        yield from renamed(
            layer,
            [
                ("attn_qkv.weight", "self_attn.qkv_proj.weight", fused),
                ("attn_output.weight", "self_attn.o_proj.weight", (sizes.width, sizes.queries)),
            ],
        )

    def _feed_forward(self, layer: int, config: Config, names: Collection[str]) -> Iterator[Rule]:
        sizes = self._sizes(config)
        yield from renamed(
            layer,
            [
                ("ffn_up.weight", "mlp.gate_up_proj.weight", (2 * sizes.inner, sizes.width)),
                ("ffn_down.weight", "mlp.down_proj.weight", (sizes.width, sizes.inner)),
            ],
        )

    def _computed(self, config: Config) -> Iterator[Rule]:
        rope = Rope.of(config)
        if rope.kind == "longrope":
            for length in ("long", "short"):
                factors = tuple(map(float, rope.parameters[f"{length}_factor"]))
                name = f"rope_factors_{length}.weight"
                yield Rule(GgufTensor(name, (len(factors),), values=factors))

    def _notes(self, config: Config) -> Iterator[str]:
        yield from super()._notes(config)
        if Rope.of(config).kind == "longrope":
            yield (
                "llama.cpp takes the long factors of the rotary embedding where its context (n_ctx) is "
                "longer than the original one, PyTorch where the text is"
            )


def _rotated(rope: Rope, sizes: Sizes) -> int:
    """Return how many elements of a head are rotated."""
    return int(rope.rotated * sizes.head_dim)


PHI3 = Phi3(
    "phi3",
    ("Phi3ForCausalLM",),
    ("phi3",),
    {"tie_word_embeddings": False, "original_max_position_embeddings": 4096},
    ropes=("default", "longrope"),
)
