"""What llama.cpp's mixes say of each kind of tensor.

Source: ``llama_tensor_get_type_impl`` in llama.cpp's ``llama-quant.cpp``; FORMATS A.1.5. A rule that is
about the first eighth of the layers, or about every third, counts layers as llama.cpp does: by visits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS

_ATTENTION_V = ("attn_qkv.weight", "attn_kv_b.weight", "attn_v.weight")
_KINDS = {
    **dict.fromkeys(_ATTENTION_V, "attn_v"),
    "attn_k.weight": "attn_k",
    "attn_q.weight": "attn_q",
    "attn_output.weight": "attn_output",
    "ffn_up": "ffn_up",
    "ffn_gate": "ffn_gate",
    "ffn_down": "ffn_down",
}

_IQ2 = ("iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
_IQ2_LARGE = ("iq2_s", "iq2_m")


@dataclass(frozen=True)
class Hyperparameters:
    """What the mixes look at.

    Args:
        architecture: ``general.architecture``.
        layers: Blocks of the model.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        experts: Of a mixture; 0 for none.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def shared(self) -> bool:
        """Whether four query heads or more share a value head: ``attn_v`` is small, and cheap to keep."""
        return self.heads // self.kv_heads >= 4

    @property
    def is_70b(self) -> bool:
        """Whether llama.cpp takes it for a 70B model, whose values get more bits."""
        if self.architecture == "llama":
            return self.layers == 80 and self.heads != self.kv_heads and self.experts != 8
        return self.architecture == "qwen2" and self.layers == 80


@dataclass
class MixState:
    """How far the visit of a model's tensors is.

    Args:
        mix: Its name.
        default: Type of what no rule names.
        model: The hyperparameters.
        importance: Whether an imatrix is at hand.
        tied: The output is the token embedding.
        values: Tensors of values (or of queries, keys and values together) in the model.
        visited: Of each kind, how many tensors had their type chosen by a rule.
    """

    mix: str
    default: str
    model: Hyperparameters
    importance: bool
    tied: bool
    values: int
    visited: dict[str, int]

    @classmethod
    def of(
        cls,
        mix: str,
        default: str,
        model: Hyperparameters,
        importance: bool,
        names: Sequence[str],
    ) -> MixState:
        """Return the state before the first visit."""
        kinds = [category(name) for name in names]
        return cls(
            mix, default, model, importance, "output" not in kinds, kinds.count("attn_v"), {}
        )

    def visit(self, kind: str) -> int:
        """Return the number of visits to a kind so far, and count this one."""
        seen = self.visited.get(kind, 0)
        self.visited[kind] = seen + 1
        return seen


def category(name: str) -> str:
    """Return the kind of a tensor, ``other`` for one of none."""
    whole = {"output.weight": "output", "token_embd.weight": "token_embd"}
    if name in whole:
        return whole[name]
    return next((kind for part, kind in _KINDS.items() if part in name), "other")


def rule_type(state: MixState, name: str) -> str:
    """Return the type that the mix gives to a tensor, before its width is looked at; counts the visit."""
    kind = category(name)
    if _is_output(state, name):
        return _output(state)
    if kind == "token_embd":
        return _embedding(state)
    if state.mix in _IQ2:
        return _two_bit(state, kind)
    if kind == "attn_v":
        return _values(state, state.visit(kind))
    if kind in ("attn_q", "attn_k"):
        return _queries_keys(state, kind)
    if kind == "attn_output":
        return _attention_output(state)
    if kind.startswith("ffn_"):
        layer = state.visit(kind)
        if state.model.experts > 1:
            layer = int(name.split(".")[1])
        return _down(state, layer) if kind == "ffn_down" else _gate_up(state, layer)
    return state.default


def is_odd_output(state: MixState, name: str, width: int) -> bool:
    """Return whether a tensor is the output and the mix's own type does not divide its rows: it is Q8_0."""
    return _is_output(state, name) and width % BLOCK_FORMATS[state.default].block != 0


def _is_output(state: MixState, name: str) -> bool:
    kind = category(name)
    return kind == "output" or (kind == "token_embd" and state.tied)


def use_more_bits(index: int, count: int) -> bool:
    """Return whether llama.cpp gives more bits to this one of so many layers."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _output(state: MixState) -> str:
    if state.mix in (*_IQ2, "iq3_xxs"):
        return "Q5_K"
    return "Q8_0" if state.default == "Q8_0" else "Q6_K"


def _embedding(state: MixState) -> str:
    chosen = {"iq2_xxs": "Q2_K", "iq2_xs": "Q2_K"}
    chosen |= dict.fromkeys(("iq2_s", "iq2_m", "iq3_xxs"), "IQ3_S")
    return chosen.get(state.mix, state.default)


def _two_bit(state: MixState, kind: str) -> str:
    """The IQ2 mixes."""
    model, better = state.model, "IQ3_S" if state.mix in _IQ2_LARGE else "Q2_K"
    if kind == "attn_v":
        return "Q4_K" if model.shared or model.experts >= 4 else better
    if kind == "attn_k" and model.experts == 8:
        return "Q4_K"
    if kind == "ffn_down" and state.visit(kind) < model.layers // 8:
        return better
    if kind == "attn_output" and model.experts == 8:
        return "Q5_K"
    if kind == "attn_output" and state.mix in _IQ2_LARGE:
        return better
    return state.default


def _values(state: MixState, index: int) -> str:
    """Values, or queries, keys and values in one."""
    if state.model.experts == 8:
        return "Q8_0"
    kind = _values_of_mix(state, index)
    return "Q5_K" if state.model.is_70b and kind in ("Q3_K", "Q4_K") else kind


def _values_of_mix(state: MixState, index: int) -> str:
    if state.model.shared and state.mix in _SHARED_VALUES:
        return _SHARED_VALUES[state.mix]
    if state.mix in ("q4_k_m", "q5_k_m"):
        return "Q6_K" if use_more_bits(index, state.values) else state.default
    if state.mix == "q3_k_m":
        return "Q5_K" if index < 2 else "Q4_K"
    if state.mix == "q4_k_s":
        return "Q5_K" if index < 4 else state.default
    if state.mix == "iq3_xxs":
        return "IQ3_XXS" if state.importance else "IQ3_S"
    return {"q2_k": "Q3_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K"}.get(state.mix, state.default)


_SHARED_VALUES = {
    **dict.fromkeys(("q2_k", "q2_k_s", "iq3_xxs", "iq3_xs", "iq3_s"), "Q4_K"),
    **dict.fromkeys(("iq4_nl", "iq4_xs"), "Q5_K"),
}


def _queries_keys(state: MixState, kind: str) -> str:
    if kind == "attn_k" and state.model.experts == 8:
        return "Q8_0"
    return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(state.mix, state.default)


def _attention_output(state: MixState) -> str:
    if state.model.experts == 8:
        return "Q5_K" if state.mix in _OUTPUT_OF_8_EXPERTS else state.default
    chosen = {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_xxs": "IQ3_S"}
    return (chosen | {"iq3_m": "Q4_K"}).get(state.mix, state.default)


_OUTPUT_OF_8_EXPERTS = (
    *("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m"),
    *("iq3_xs", "iq3_xxs", "iq3_s", "iq3_m", "iq4_nl", "iq4_xs"),
)


def _down(state: MixState, layer: int) -> str:
    mix, layers = state.mix, state.model.layers
    if mix in ("q2_k", "q3_k_l"):
        return {"q2_k": "Q3_K", "q3_k_l": "Q5_K"}[mix]
    if mix == "q3_k_m":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mix in ("q4_k_m", "q5_k_m"):
        return "Q6_K" if use_more_bits(layer, layers) else state.default
    if mix == "iq3_xxs" and not state.importance:
        return "Q4_K" if layer < layers // 8 else "Q3_K"
    if mix == "iq3_m" and state.model.experts == 8 and use_more_bits(layer, layers):
        return "Q4_K"
    return _early_down(state) if layer < layers // 8 else state.default


def _early_down(state: MixState) -> str:
    """``ffn_down`` in the first eighth of the layers, where the mix says nothing of the others."""
    chosen = {"q2_k_s": "Q4_K", "iq3_m": "Q4_K", "q4_k_s": "Q5_K"}
    if state.importance:
        chosen |= {"q4_0": "Q4_1", "q5_0": "Q5_1"}
    else:
        chosen |= {"iq4_nl": "Q5_K", "iq4_xs": "Q5_K"}
    return chosen.get(state.mix, state.default)


def _gate_up(state: MixState, layer: int) -> str:
    layers = state.model.layers
    middle = layers // 8 <= layer < 7 * layers // 8
    return "IQ3_XXS" if state.mix == "iq3_xs" and middle else state.default
