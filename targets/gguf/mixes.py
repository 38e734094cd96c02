"""llama.cpp's mixes: which type each tensor has in a ``q4_k_m`` file.

Facts: FORMATS A.1.4 and A.1.5 (``llama_tensor_get_type`` in llama.cpp's ``llama-quant.cpp``). A test asks
``llama_model_quantize`` for the types of every mix and compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import fallback
from qcompile.compiler.ir.errors import TargetError
from qcompile.targets.gguf.mix_rules import (
    Hyperparameters,
    MixState,
    category,
    is_odd_output,
    rule_type,
)
from qcompile.targets.gguf.tensors import never_quantized

FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Mix:
    """A mix as llama-quantize knows it.

    Args:
        name: As users write it.
        file_type: ``general.file_type`` in the file.
        default: Type of what no rule names.
    """

    name: str
    file_type: int
    default: str


MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        name: Mix(name, number, default)
        for name, number, default in (
            ("f32", 0, "F32"),
            ("f16", 1, "F16"),
            ("bf16", 32, "BF16"),
            ("q8_0", 7, "Q8_0"),
            ("q6_k", 18, "Q6_K"),
            ("q5_k_m", 17, "Q5_K"),
            ("q5_k_s", 16, "Q5_K"),
            ("q5_1", 9, "Q5_1"),
            ("q5_0", 8, "Q5_0"),
            ("q4_k_m", 15, "Q4_K"),
            ("q4_k_s", 14, "Q4_K"),
            ("q4_1", 3, "Q4_1"),
            ("q4_0", 2, "Q4_0"),
            ("iq4_nl", 25, "IQ4_NL"),
            ("iq4_xs", 30, "IQ4_XS"),
            ("q3_k_l", 13, "Q3_K"),
            ("q3_k_m", 12, "Q3_K"),
            ("q3_k_s", 11, "Q3_K"),
            ("iq3_m", 27, "IQ3_S"),
            ("iq3_s", 26, "IQ3_S"),
            ("iq3_xs", 22, "IQ3_S"),
            ("iq3_xxs", 23, "IQ3_XXS"),
            ("q2_k", 10, "Q2_K"),
            ("q2_k_s", 21, "Q2_K"),
            ("iq2_m", 29, "IQ2_S"),
            ("iq2_s", 28, "IQ2_XS"),
            ("iq2_xs", 20, "IQ2_XS"),
            ("iq2_xxs", 19, "IQ2_XXS"),
        )
    }
)


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows the type that was asked for does not divide.

    Args:
        tensor: Its name.
        width: Elements of a row.
        wanted: The type that was asked for.
        used: The type instead of it.
        extra_bytes: What that costs: bytes more than ``wanted`` would take, were the rows divisible.
    """

    tensor: str
    width: int
    wanted: str
    used: str
    extra_bytes: int

    def __str__(self) -> str:
        return f"{self.tensor} is {self._said(self.extra_bytes)}"

    def of(self, others: Sequence[Fallback]) -> str:
        """Say the same of several tensors that differ in nothing but their names and sizes."""
        extra = sum(each.extra_bytes for each in (self, *others))
        return f"{self.tensor} and {len(others)} more are {self._said(extra)}"

    def _said(self, extra: int) -> str:
        return (
            f"stored as {self.used}, not {self.wanted}, which takes rows in blocks of "
            f"{BLOCK_FORMATS[self.wanted].block} and not of {self.width}: {extra:,} bytes more"
        )


def summed(fallbacks: Sequence[Fallback]) -> list[str]:
    """Say of all tensors which type they have and what it costs, those that are alike in one sentence."""
    alike: dict[tuple[int, str, str], list[Fallback]] = {}
    for each in fallbacks:
        alike.setdefault((each.width, each.wanted, each.used), []).append(each)
    return [first.of(others) if others else str(first) for first, *others in alike.values()]


@dataclass(frozen=True)
class TensorTypes:
    """The type of each tensor.

    Args:
        types: Name of the type by name of the tensor, in the order that was given.
        fallbacks: Where a row's width decided.
        needs_importance: Tensors that llama-quantize refuses to store so without an imatrix.
    """

    types: Mapping[str, str]
    fallbacks: tuple[Fallback, ...]
    needs_importance: tuple[str, ...]


def tensor_types(
    mix: str,
    shapes: Mapping[str, tuple[int, ...]],
    hyperparameters: Hyperparameters,
    importance: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
) -> TensorTypes:
    """Choose the type of each tensor as llama-quantize would.

    One thing differs: overrides also count in f32, f16 and bf16 files, where llama-quantize ignores them.

    Args:
        mix: Of ``MIXES``.
        shapes: Of the file's tensors by name, each ``[..., out, in]``.
        hyperparameters: Of the model.
        importance: Whether an imatrix is at hand, which changes some mixes.
        overrides: Regular expression and name of a type; the first that is found in a name counts.

    Raises:
        TargetError: No such mix or type, an expression that is none, or one that matches no tensor that
            can be quantized.
    """
    chosen = find_mix(mix)
    patterns = _compiled(overrides)
    encodable = [name for name, shape in shapes.items() if not never_quantized(name, shape)]
    _check_matches(patterns, encodable)
    choices = _choices(chosen, encodable, shapes, hyperparameters, importance, patterns)
    types = {name: choices[name][1] if name in choices else "F32" for name in shapes}
    fallbacks = [
        _fallback(name, shapes[name], *choices[name])
        for name in encodable
        if choices[name][0] != choices[name][1]
    ]
    needing = [name for name in encodable if _needs_importance(name, types[name], chosen.name)]
    return TensorTypes(MappingProxyType(types), tuple(fallbacks), tuple(needing))


def find_mix(name: str) -> Mix:
    """Return a mix.

    Raises:
        TargetError: There is none; lists those that there are.
    """
    if name not in MIXES:
        raise TargetError(f"no precision {name!r} in GGUF; there are: {', '.join(MIXES)}")
    return MIXES[name]


def _choices(
    mix: Mix,
    encodable: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    hyperparameters: Hyperparameters,
    importance: bool,
    patterns: Sequence[tuple[re.Pattern[str], str]],
) -> dict[str, tuple[str, str]]:
    """Return the type that is wanted for each tensor, and the one that its width allows."""
    state = MixState.of(mix.name, mix.default, hyperparameters, importance, list(shapes))
    choices = {}
    for name in sorted(encodable, key=_visit_order):
        width = shapes[name][-1]
        forced = next((kind for pattern, kind in patterns if pattern.search(name)), None)
        if forced is not None or mix.default in FLOATS:
            wanted = forced or mix.default
            choices[name] = (wanted, fallback(wanted, width))
        else:
            wanted = rule_type(state, name)
            fitting = "Q8_0" if is_odd_output(state, name, width) else wanted
            choices[name] = (wanted, fallback(fitting, width))
    return choices


def _visit_order(name: str) -> tuple[int, str]:
    """Order names as llama.cpp does: by layer, what has none first, then by name."""
    found = re.match(r"blk\.(\d+)\.", name)
    return (int(found[1]) if found else -1, name)


def _fallback(name: str, shape: tuple[int, ...], wanted: str, used: str) -> Fallback:
    elements = 1
    for size in shape:
        elements *= size
    bits = BLOCK_FORMATS[wanted].bits_per_weight(shape)
    extra = BLOCK_FORMATS[used].storage_bytes(shape) - round(elements * bits / 8)
    return Fallback(name, shape[-1], wanted, used, extra)


def _needs_importance(name: str, kind: str, mix: str) -> bool:
    if category(name) in ("output", "token_embd"):
        return False
    always = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S")
    return kind in always or (kind == "Q2_K" and mix == "q2_k_s")


def _compiled(overrides: Sequence[tuple[str, str]]) -> list[tuple[re.Pattern[str], str]]:
    compiled, wrong = [], []
    for expression, name in overrides:
        kind = name.upper()
        if kind not in BLOCK_FORMATS:
            wrong.append(f"{name!r} is no type of GGUF")
            continue
        try:
            compiled.append((re.compile(expression), kind))
        except re.error as error:
            wrong.append(f"{expression!r} is no regular expression ({error})")
    if wrong:
        raise TargetError(
            f"{'; '.join(wrong)}: give REGEX=TYPE with one of {', '.join(BLOCK_FORMATS)}"
        )
    return compiled


def _check_matches(patterns: Sequence[tuple[re.Pattern[str], str]], names: Sequence[str]) -> None:
    idle = [p.pattern for p, _ in patterns if not any(p.search(name) for name in names)]
    if idle:
        examples = ", ".join(names[:3])
        raise TargetError(
            f"no tensor that can be quantized has a name in which {', '.join(map(repr, idle))} is found; "
            f"names are {examples} and the like, {len(names)} in all"
        )
