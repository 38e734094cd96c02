"""Which formats each tensor of a file may have: what a plan under a budget chooses from."""

from __future__ import annotations

import re

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import BlockFormat, fallback
from qcompile.targets.gguf.container import aligned
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.mixes import MIXES
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized
from qcompile.targets.options import BlockOptions
from qcompile.targets.plans import TensorChoices

OFFERED = (
    "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
"""In blocks of 256; the older formats of so many bits lose more."""
OFFERED_TO_NARROW = ("IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""In blocks of 32, for rows that are no multiple of 256."""
OFFERED_TO_ALL = ("Q8_0", "F16")
MIXED = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0")
"""What a file of many formats may call itself."""


def tensor_choices(
    layout: Layout, options: BlockOptions, keep_float: frozenset[str]
) -> tuple[TensorChoices, ...]:
    """Return the tensors that are stored in rows, in file order, those together that share weights.

    Args:
        layout: Of the file, with the user's types.
        options: A tensor whose type the user gave has no other.
        keep_float: Weights that the user wants as float: they have none but F16.
    """
    patterns = [re.compile(expression) for expression, _ in options.tensor_types]
    pinned = frozenset(t.name for t in layout.tensors if any(p.search(t.name) for p in patterns))
    groups: list[list[GgufTensor]] = []
    for tensor in layout.tensors:
        if never_quantized(tensor.name, tensor.shape):
            continue
        sharing = [g for g in groups if any(_share(tensor, other) for other in g)]
        groups = [g for g in groups if g not in sharing]
        groups.append([*(other for g in sharing for other in g), tensor])
    order = {tensor.name: index for index, tensor in enumerate(layout.tensors)}
    groups = sorted(
        (sorted(g, key=lambda t: order[t.name]) for g in groups), key=lambda g: order[g[0].name]
    )
    return tuple(_choices(layout, group, pinned, keep_float) for group in groups)


def nearest_mix(bits_per_weight: float) -> str:
    """Return the mix whose usual type has about so many bits: what the file says that it is."""
    return min(MIXED, key=lambda name: abs(_bits(MIXES[name].default) - bits_per_weight))


def _bits(kind: str) -> float:
    format = BLOCK_FORMATS[kind]
    return format.bits_per_weight((1, format.block))


def _share(first: GgufTensor, second: GgufTensor) -> bool:
    return not set(first.sources).isdisjoint(second.sources)


def _choices(
    layout: Layout, group: list[GgufTensor], pinned: frozenset[str], keep_float: frozenset[str]
) -> TensorChoices:
    sources = tuple(dict.fromkeys(name for tensor in group for name in tensor.sources))
    fixed = [layout.chosen.types[t.name] for t in group if t.name in pinned]
    if not keep_float.isdisjoint(sources):
        fixed.append("F16")
    names = sorted(set(fixed)) or _offered(group)
    formats = tuple(BLOCK_FORMATS[name] for name in names)
    sizes = tuple(sum(_bytes(tensor, format) for tensor in group) for format in formats)
    return TensorChoices({t.name: t.shape for t in group}, sources, formats, sizes)


def _offered(group: list[GgufTensor]) -> list[str]:
    """Return the formats that divide the rows of all tensors of a group."""
    widths = {tensor.shape[-1] for tensor in group}
    fitting = [n for n in OFFERED if all(fallback(n, width) == n for width in widths)]
    narrow = [n for n in OFFERED_TO_NARROW if all(fallback(n, width) == n for width in widths)]
    always = [n for n in OFFERED_TO_ALL if all(fallback(n, width) == n for width in widths)]
    return [*(fitting or narrow), *always]


def _bytes(tensor: GgufTensor, format: BlockFormat) -> int:
    return aligned(format.storage_bytes(tensor.shape))
