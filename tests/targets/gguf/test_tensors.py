"""What is said about rows holds for numbers and for encoded rows alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.targets.gguf.tensors import GgufTensor, Interleaved, Part, never_quantized

Q8_0 = BLOCK_FORMATS["Q8_0"]


def values(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_heads_are_interleaved_as_the_converter_does() -> None:
    heads, head_dim, width = 3, 8, 5
    w = values(heads * head_dim, width)
    # llama.cpp's converter: LlamaModel.permute
    expected = w.reshape(heads, 2, head_dim // 2, width).swapaxes(1, 2).reshape(w.shape)
    tensor = GgufTensor("attn_q.weight", w.shape, ("q",), Interleaved(heads))
    assert torch.equal(tensor.numbers({"q": w}.__getitem__), expected)
    assert tensor.rows([w])[0:2].tolist() == w[[0, head_dim // 2]].tolist()
    bias = GgufTensor("attn_q.bias", w.shape[:1], ("b",), Interleaved(heads))
    assert torch.equal(bias.numbers({"b": w[:, 0]}.__getitem__), expected[:, 0])


@pytest.mark.parametrize(
    "tensor",
    [
        GgufTensor("a.weight", (12, 64), ("x",), Interleaved(2)),
        GgufTensor("a.weight", (2, 12, 64), ("x", "y")),
        GgufTensor("a.weight", (4, 3, 64), ("x", "y"), Part(1, 2, 4)),
        GgufTensor("a.weight", (64, 12), ("x",), transposed=True),
    ],
)
def test_encoding_first_gives_the_same_bytes(tensor: GgufTensor) -> None:
    sources = {name: values(12, 64) + ord(name) for name in tensor.sources}
    if tensor.transposed:
        sources = {name: values(32, 64) for name in tensor.sources}
    encoded = [Q8_0.encode(tensor.matrix(x)) for x in sources.values()]
    after = Q8_0.encode(tensor.rows([tensor.matrix(x) for x in sources.values()]))
    assert torch.equal(tensor.rows(encoded), after)
    given = dict(zip(sources, encoded, strict=True))
    assert torch.equal(torch.cat(list(tensor.runs(given.__getitem__))), after)


def test_parts_of_fused_experts() -> None:
    experts, inner, width = 3, 4, 5
    fused = values(experts, 2 * inner, width)
    gate, up = (
        GgufTensor("w.weight", (experts, inner, width), ("x",), Part(part, 2, experts))
        for part in (0, 1)
    )
    read = {"x": fused}.__getitem__
    assert torch.equal(gate.numbers(read), fused[:, :inner])
    assert torch.equal(up.numbers(read), fused[:, inner:])


def test_sources_are_read_when_their_rows_are_needed() -> None:
    asked = []

    def read(name: str) -> Tensor:
        asked.append(name)
        return torch.ones(1, 2)

    runs = GgufTensor("w.weight", (2, 1, 2), ("x", "y")).runs(read)
    next(runs)
    assert asked == ["x"]


def test_nothing_is_added_to_what_may_be_encoded() -> None:
    norm = GgufTensor("blk.0.attn_norm.weight", (2,), ("n",), shift=1.0)
    assert norm.numbers({"n": torch.tensor([0.5, -1.0])}.__getitem__).tolist() == [1.5, 0.0]
    with pytest.raises(ValueError, match="nothing can be added"):
        GgufTensor("blk.0.ffn_up.weight", (2, 2), ("w",), shift=1.0)


def test_what_is_never_quantized() -> None:
    kept = {
        "blk.0.attn_norm.weight": (8,),
        "blk.0.ffn_gate_inp.weight": (4, 8),
        "position_embd.weight": (4, 8),
        "blk.0.attn_q.bias": (8,),
        "blk.0.ffn_up.weight": (1, 8),
    }
    assert all(never_quantized(name, shape) for name, shape in kept.items())
    assert not never_quantized("blk.0.ffn_up.weight", (8, 1))
    assert not never_quantized("token_embd.weight", (8, 8))
