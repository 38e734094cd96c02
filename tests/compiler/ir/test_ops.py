"""The decoding ops: bit for bit what the specs decode, and shapes without data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, LOOKUP, aten
from qcompile.compiler.ir.palette import PaletteParams, PaletteSpec
from qcompile.compiler.ir.quant import QuantSpec
from qcompile.passes.base import run
from qcompile.passes.graph.fold_constants import FoldConstants


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3), (6, 8, 3, 3), (6, 8, 2, 1, 2)])
@pytest.mark.parametrize("float_bits", [16, 32])
@pytest.mark.parametrize("kind", ["int4 full", "uint4 asym", "int8 sym"])
@pytest.mark.parametrize("blocks", ["per_group(1,4)", "per_channel(0)"])
def test_dequantize_blockwise(
    shape: tuple[int, ...], float_bits: int, kind: str, blocks: str
) -> None:
    spec = QuantSpec.parse(f"{kind} {blocks}{' fp16-scale' if float_bits == 16 else ''}")
    params = spec.min_max(x := torch.randn(shape))
    codes, zero = spec.encode(x, params), params.zero_point.to(spec.dtype)
    given = None if spec.symmetric else zero
    found = DEQUANTIZE_BLOCKWISE(codes, params.scale, given, spec.bits, float_bits)
    assert torch.equal(found, spec.decode(codes, params))
    assert params.scale.dim() == x.dim()
    assert torch.equal(found, found.half().float()) == (float_bits == 16)


@pytest.mark.parametrize("scaled", [False, True])
def test_lookup(scaled: bool) -> None:
    spec = PaletteSpec(bits=2, group_size=3, channel_scale=scaled)
    lut = torch.randn(2, 4).sort(1).values.half().float()
    scale = (torch.rand(6) + 0.5).half().float() if scaled else None
    params, x = PaletteParams(lut, scale), torch.randn(6, 2, 3)
    codes = spec.encode(x, params)
    assert torch.equal(LOOKUP(codes, lut, scale, 16), spec.decode(codes, params))
    exact = LOOKUP(codes, lut, scale, 32)
    assert torch.equal(exact.half().float(), spec.decode(codes, params))


class Dense(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.t()


def test_shapes_are_inferred_and_decoders_are_not_folded() -> None:
    graph = trace(Dense(), torch.randn(2, 6))
    (weight,) = [n for n in graph.nodes if n.op == "get_attr"]
    with graph.after(weight):
        codes = graph.add_constant("codes", torch.zeros(4, 6, dtype=torch.int8))
        scale = graph.add_constant("scale", torch.ones(4, 2))
        decoded = graph.add_call(DEQUANTIZE_BLOCKWISE, codes, scale, None, 4, 16)
        indices = graph.add_constant("indices", torch.zeros(4, 6, dtype=torch.uint8))
        lut = graph.add_constant("lut", torch.ones(2, 4))
        looked = graph.add_call(LOOKUP, indices, lut, None, 16)
        total = graph.add_call(aten.add.Tensor, decoded, looked)
    weight.replace_all_uses_with(total)
    graph.erase_unused()
    for node in (decoded, looked):
        assert (node.meta["val"].shape, node.meta["val"].dtype) == ((4, 6), torch.float32)
    assert run(graph, [FoldConstants()])[0].rewrites == 0
    x = torch.randn(2, 6)
    expected = x.sum(1, keepdim=True).expand(2, 4)
    torch.testing.assert_close(graph.run({"x": x})["output"], expected)
    program = graph.exported()
    torch.testing.assert_close(program.module()(x)[0], expected)
