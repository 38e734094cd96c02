"""What each tensor may be, the bytes that it takes, and which tensors must be alike."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.targets.gguf.choices import nearest_mix, tensor_choices
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.mixes import tensor_types
from qcompile.targets.gguf.tensors import GgufTensor, Part
from qcompile.targets.options import NO_BLOCK_OPTIONS


def layout(tensors: list[GgufTensor], types: tuple[tuple[str, str], ...] = ()) -> Layout:
    from qcompile.targets.gguf.mix_rules import Hyperparameters

    shapes = {t.name: t.shape for t in tensors}
    chosen = tensor_types("q4_k_m", shapes, Hyperparameters("llama", 1, 4, 4), True, types)
    checkpoint = Checkpoint(Path(), {}, {}, 64)
    architecture: Any = None
    return Layout(checkpoint, architecture, "q4_k_m", tuple(tensors), chosen)


def matrix(name: str, width: int, *sources: str) -> GgufTensor:
    return GgufTensor(f"blk.0.{name}.weight", (8, width), sources or (name,))


def test_formats_fit_the_width() -> None:
    found = tensor_choices(
        layout([matrix("attn_q", 512), matrix("ffn_up", 96), matrix("ffn_down", 50)]),
        NO_BLOCK_OPTIONS,
        frozenset(),
    )
    names = [[f.name for f in c.formats] for c in found]

    assert [c.name for c in found] == [
        "blk.0.attn_q.weight",
        "blk.0.ffn_up.weight",
        "blk.0.ffn_down.weight",
    ]
    assert {"IQ2_XXS", "Q4_K", "Q8_0", "F16"} <= set(names[0])
    assert names[1] == ["IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"]
    assert names[2] == ["F16"]


def test_bytes_are_those_of_the_file() -> None:
    """Padded to the next tensor's beginning."""
    (found,) = tensor_choices(layout([matrix("attn_q", 256)]), NO_BLOCK_OPTIONS, frozenset())
    sizes = dict(zip((f.name for f in found.formats), found.bytes, strict=True))

    assert sizes["Q4_K"] == 8 * 144
    assert sizes["Q6_K"] == 8 * 210 + 16  # 1,680 is no multiple of 32


def test_tensors_that_share_weights_are_alike() -> None:
    fused = [
        GgufTensor("blk.0.ffn_gate.weight", (8, 256), ("gate_up",), Part(0, 2)),
        matrix("attn_q", 256),
        GgufTensor("blk.0.ffn_up.weight", (8, 256), ("gate_up",), Part(1, 2)),
    ]
    first, second = tensor_choices(layout(fused), NO_BLOCK_OPTIONS, frozenset())

    assert list(first.tensors) == ["blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"]
    assert first.sources == ("gate_up",)
    assert first.bytes[0] == 2 * second.bytes[0]


def test_what_the_user_gave_is_the_only_choice() -> None:
    types = (("attn_q", "q5_k"),)
    options = replace(NO_BLOCK_OPTIONS, tensor_types=types)
    tensors = [matrix("attn_q", 256), matrix("ffn_up", 256), matrix("ffn_down", 256)]

    found = tensor_choices(layout(tensors, types), options, frozenset({"ffn_up"}))

    names = {c.name: [f.name for f in c.formats] for c in found}
    assert names["blk.0.attn_q.weight"] == ["Q5_K"]
    assert names["blk.0.ffn_up.weight"] == ["F16"]
    assert len(names["blk.0.ffn_down.weight"]) > 10


@pytest.mark.parametrize(
    ("bits", "mix"),
    [(2.7, "q2_k"), (3.4, "q3_k"), (4.5, "q4_k"), (5.4, "q5_k"), (6.5, "q6_k"), (9, "q8_0")],
)
def test_the_file_says_what_it_nearly_is(bits: float, mix: str) -> None:
    assert re.match(mix, nearest_mix(bits))
