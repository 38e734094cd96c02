"""Rotary embeddings: what a configuration says of them, and what llama.cpp is told.

Source: ``modeling_rope_utils.py`` of transformers for what the parameters mean; ``conversion/base.py``,
``llama.py`` and ``phi.py`` of llama.cpp's converter, and ``ggml_rope_ext``, for how GGUF says it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.errors import ModelError

_NEEDED = {
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings"),
}
_NUMBERS = (
    *("rope_theta", "factor", "low_freq_factor", "high_freq_factor", "partial_rotary_factor"),
    *("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
)
_LISTS = ("long_factor", "short_factor")


@dataclass(frozen=True)
class Rope:
    """How a kind of layer rotates queries and keys.

    Args:
        kind: ``default``, ``linear``, ``yarn``, ``llama3``, ``longrope``, or what the model calls it.
        base: Of the frequencies, theta.
        parameters: All that the configuration says of it.
    """

    kind: str
    base: float
    parameters: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], layer_type: str = "full_attention") -> Rope:
        """Read a configuration: of transformers 5 (``rope_parameters``) or older (``rope_scaling``)."""
        said = _table(config.get("rope_parameters") or config.get("rope_scaling") or {})
        said = _table(said.get(layer_type, said))
        kind = said.get("rope_type") or said.get("type") or "default"
        said.setdefault(
            "original_max_position_embeddings", config.get("original_max_position_embeddings")
        )
        said.setdefault("partial_rotary_factor", config.get("partial_rotary_factor"))
        said["rope_theta"] = said.get("rope_theta") or config.get("rope_theta") or 10000.0
        known = {key: value for key, value in said.items() if value is not None}
        _check_numbers(known)
        return cls({"su": "longrope"}.get(kind, kind), float(known["rope_theta"]), known)

    @property
    def rotated(self) -> float:
        """The share of a head that is rotated."""
        return float(self.parameters.get("partial_rotary_factor", 1.0))

    def refusals(self, kinds: Collection[str], partial: bool = False) -> Iterator[str]:
        """Yield what llama.cpp would compute differently.

        Args:
            kinds: What the architecture can do.
            partial: Whether it can rotate a part of a head.
        """
        if self.kind not in kinds:
            yield f"rope type {self.kind!r} (possible: {', '.join(sorted(kinds))})"
            return
        missing = [key for key in _NEEDED.get(self.kind, ()) if key not in self.parameters]
        if missing:
            yield f"rope type {self.kind!r} without {', '.join(missing)}"
        if self.rotated != 1.0 and not partial:
            yield f"partial_rotary_factor {self.rotated:g}"
        if self.kind == "yarn":
            yield from self._yarn_refusals()

    def _yarn_refusals(self) -> Iterator[str]:
        """llama.cpp computes the attention factor from ``factor`` alone, and truncates."""
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if key in self.parameters:
                yield f"{key} of a yarn rope"
        if self.parameters.get("truncate") is False:
            yield "truncate=false of a yarn rope"

    def fields(self) -> dict[str, Any]:
        """Return the fields, without the architecture's name before them."""
        fields: dict[str, Any] = {}
        said = self.parameters
        if self.kind in ("linear", "yarn"):
            fields["rope.scaling.type"] = self.kind
            fields["rope.scaling.factor"] = float(said["factor"])
        if self.kind == "yarn":
            original = said["original_max_position_embeddings"]
            fields["rope.scaling.original_context_length"] = int(original)
            for key in ("beta_fast", "beta_slow"):
                if said.get(key):
                    fields[f"rope.scaling.yarn_{key}"] = float(said[key])
        return {**fields, "rope.freq_base": self.base}

    def llama3_factors(self, head_dim: int) -> tuple[float, ...]:
        """Return by what each frequency is divided: low ones by ``factor``, high ones by nothing."""
        factor, low, high, context = (float(self.parameters[key]) for key in _NEEDED["llama3"])
        factors = []
        for index in range(0, head_dim, 2):
            length = 2 * math.pi * self.base ** (index / head_dim)
            smooth = min(max((context / length - low) / (high - low), 0.0), 1.0)
            factors.append(1 / ((1 - smooth) / factor + smooth))
        return tuple(factors)

    def longrope_scale(self, context: int) -> float:
        """Return what queries and keys are multiplied by.

        Args:
            context: ``max_position_embeddings``.
        """
        if "attention_factor" in self.parameters:
            return float(self.parameters["attention_factor"])
        original = int(self.parameters["original_max_position_embeddings"])
        factor = float(self.parameters.get("factor", context / original))
        return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _table(said: object) -> dict[str, Any]:
    if not isinstance(said, Mapping):
        raise ModelError(
            f"config.json holds {said!r} for the rope's parameters: give an object of them"
        )
    return dict(said)


def _check_numbers(said: Mapping[str, Any]) -> None:
    wrong = {key: said[key] for key in _NUMBERS if key in said and not _positive(said[key])}
    for key in _LISTS:
        values = said.get(key, [])
        if not isinstance(values, list) or not all(map(_positive, values)):
            wrong[key] = values
    if wrong:
        listed = ", ".join(f"{key} = {value!r}" for key, value in wrong.items())
        raise ModelError(
            f"config.json holds parameters of the rope that are no numbers above 0: {listed}; correct them"
        )


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
