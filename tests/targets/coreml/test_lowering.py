"""Codes, scales and zero points of the graph arrive in the package bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import (
    DEQUANTIZE,
    DEQUANTIZE_BLOCKWISE,
    DEQUANTIZE_PER_CHANNEL,
    QUANTIZE,
    aten,
)

Emit = Callable[..., Any]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["signed", "signed with offset", "unsigned with offset"])
def test_blocks_on_ios_18(emit: Emit, stored: ModuleType, bits: int, form: str) -> None:
    signed, has_offset = not form.startswith("un"), form.endswith("offset")
    cases = [
        stored.integers(bits, grid, signed=signed, has_offset=has_offset) for grid in stored.GRIDS
    ]
    net = stored.Layers(*(nn.Linear(stored.IN, stored.OUT) for _ in cases))
    emission = emit(
        net, torch.randn(3, stored.IN), change=stored.decode_with(*(c.make for c in cases))
    )
    stored.check(emission, "constexpr_blockwise_shift_scale", cases)


@pytest.mark.parametrize("ios", [16, 17])
def test_eight_bits_before_ios_18(emit: Emit, stored: ModuleType, ios: int) -> None:
    cases = []
    for signed in (True, False):
        for shape in ((stored.OUT, 1), (1, 1)):
            case = stored.integers(8, shape, signed=signed, has_offset=not signed)
            flat = (-1,) if shape[0] == stored.OUT else ()
            codes, scale = case.constants["data"], case.constants["scale"]
            zeros = case.constants.get("offset", torch.zeros(shape, dtype=codes.dtype))
            case.constants = {
                "quantized_data": codes, "scale": scale.reshape(flat),
                "zero_point": zeros.reshape(flat),
            }  # fmt: skip
            cases.append(case)
    net = stored.Layers(*(nn.Linear(stored.IN, stored.OUT) for _ in cases))
    change = stored.decode_with(*(c.make for c in cases))
    emission = emit(net, torch.randn(3, stored.IN), change=change, ios=ios)
    stored.check(emission, "constexpr_affine_dequantize", cases)


@pytest.mark.parametrize(
    ("ios", "kind", "key"),
    [
        (16, "constexpr_affine_dequantize", "quantized_data"),
        (18, "constexpr_blockwise_shift_scale", "data"),
    ],
)
def test_a_convolutions_channels(
    emit: Emit, stored: ModuleType, ios: int, kind: str, key: str
) -> None:
    """Output channels are axis 0 of a convolution; of a transposed one they are axis 1."""
    layers = (nn.Conv2d(5, 7, 3), nn.ConvTranspose2d(5, 7, 3))
    codes = [stored.codes_of(8, signed=True, shape=tuple(layer.weight.shape)) for layer in layers]
    scales = [stored.scales_of(7) for _ in layers]

    def make(axis: int) -> Callable[[Graph], fx.Node]:
        def add(graph: Graph) -> fx.Node:
            stored = [
                graph.add_constant("codes", codes[axis]),
                graph.add_constant("scale", scales[axis]),
                graph.add_constant("zero", torch.zeros(7, dtype=torch.int64)),
            ]
            return graph.add_call(DEQUANTIZE_PER_CHANNEL, *stored, axis, -128, 127, torch.int8)

        return add

    change = stored.decode_with(make(0), make(1))
    emission = emit(
        stored.Layers(*layers), torch.randn(1, 5, 9, 9), change=change, ios=ios, float_bits=32
    )
    read = zip(stored.ours(emission, kind), stored.theirs(emission.folder, kind), strict=True)
    for axis, ((_, found), other) in enumerate(read):
        np.testing.assert_array_equal(found[key], codes[axis].numpy())
        expected = codes[axis].float() * scales[axis].reshape([(-1, 1, 1, 1), (-1, 1, 1)][axis])
        np.testing.assert_array_equal(stored.decoded(other), expected.numpy())
    assert emission.gate()["passed"], emission.gate()


@pytest.mark.parametrize(("dtype", "zero"), [(torch.int8, 0), (torch.int8, -7), (torch.uint8, 131)])
@pytest.mark.parametrize("ios", [17, 18])
def test_activations_in_codes(
    emit: Emit, stored: ModuleType, dtype: torch.dtype, zero: int, ios: int
) -> None:
    limits = (0.0302734375, zero, *((-128, 127) if dtype == torch.int8 else (0, 255)), dtype)

    def change(graph: Graph) -> None:
        (layer,) = graph.calls(aten.linear.default)
        x = layer.args[0]
        assert isinstance(x, fx.Node)
        with graph.before(layer):
            codes = graph.add_call(QUANTIZE, x, *limits, name="x_q")
            layer.replace_input_with(x, graph.add_call(DEQUANTIZE, codes, *limits, name="x_dq"))

    emission = emit(
        nn.Linear(stored.IN, stored.OUT), torch.randn(3, stored.IN), change=change, ios=ios
    )
    for kind in ("quantize", "dequantize"):
        ((operation, found),) = stored.ours(emission, kind)
        assert found["scale"] == np.float16(limits[0])
        assert found.get("zero_point", 0) == zero
        assert kind == "dequantize" or operation.outputs[0][1].dtype == dtype
    codes = [r for r in emission.rows if r["sqnr_db"] is None and "limit_db" not in r]
    assert len(codes) == 1
    assert codes[0]["largest"] <= 1
    assert emission.gate()["passed"], emission.gate()


def test_weights_in_codes_of_one_scale(emit: Emit, stored: ModuleType) -> None:
    codes, limits = stored.codes_of(8, signed=False), (0.02, 128, 0, 255, torch.uint8)

    def make(graph: Graph) -> fx.Node:
        return graph.add_call(DEQUANTIZE, graph.add_constant("codes", codes), *limits)

    net = stored.Layers(nn.Linear(stored.IN, stored.OUT))
    emission = emit(net, torch.randn(3, stored.IN), change=stored.decode_with(make), float_bits=32)
    ((_, found),) = stored.ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(found["data"], codes.numpy())
    np.testing.assert_array_equal(found["offset"], np.full((1, 1), 128, np.uint8))
    assert emission.gate()["passed"], emission.gate()


def test_a_table_in_codes(emit: Emit, stored: ModuleType) -> None:
    codes, scale = stored.codes_of(8, signed=True, shape=(20, 6)), stored.scales_of(20, 1)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
        return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)

    ids = torch.tensor([[0, 19, 7]])
    emission = emit(stored.Layers(nn.Embedding(20, 6)), ids, change=stored.decode_with(make))
    ((_, found),) = stored.ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(found["data"], codes.numpy())
    expected = stored.affine(codes, scale).astype(np.float16)[[[0, 19, 7]]]
    (values,) = emission.run().values()
    np.testing.assert_array_equal(values, expected)
