"""Our ops: decoding, bit for bit what the specs decode; experts, against a dense sum; shapes without data."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, EXPERT_LINEAR, LOOKUP, aten
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


@settings(max_examples=15)
@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_expert_linear_is_a_dense_sum_of_masked_experts(
    sizes: tuple[int, int, int], choices: int, shared: bool, seed: int
) -> None:
    """Against all experts on all tokens, in float64, with those zeroed that were not chosen."""
    (tokens, columns, rows), experts = sizes, 4
    torch.manual_seed(seed)
    x = torch.randn(tokens, 1 if shared else choices, columns)
    chosen = torch.rand(tokens, experts).topk(choices).indices
    shares = None if shared else torch.randn(tokens, choices)
    weights = [torch.randn(rows, columns) for _ in range(experts)]
    every = torch.einsum("tci,eoi->tceo", x.double(), torch.stack(weights).double())
    mask = torch.nn.functional.one_hot(chosen, experts).double()
    factor = mask if shares is None else mask * shares[..., None]
    expected = (every * factor[..., None]).sum(2)
    found = EXPERT_LINEAR(x, chosen, shares, weights)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    shapes = [t.to("meta") for t in weights]
    empty = EXPERT_LINEAR(x.to("meta"), chosen.to("meta"), None, shapes)
    assert empty.shape == found.shape


def test_an_expert_that_nobody_chose_is_not_read_into_the_result() -> None:
    weights = [torch.ones(2, 3), torch.full((2, 3), torch.nan)]
    found = EXPERT_LINEAR(torch.ones(4, 1, 3), torch.zeros(4, 1, dtype=torch.int64), None, weights)
    assert torch.equal(found, torch.full((4, 1, 2), 3.0))
