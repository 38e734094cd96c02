"""Palettes of the graph, indices and tables, arrive in the package bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, LOOKUP

Emit = Callable[..., Any]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_palettes_on_ios_18(emit: Emit, stored: ModuleType, bits: int) -> None:
    cases = [stored.palette(bits, groups)[0] for groups in (1, 2, stored.OUT)]
    net = stored.Layers(*(nn.Linear(stored.WIDE, stored.OUT) for _ in cases))
    emission = emit(
        net, torch.randn(3, stored.WIDE), change=stored.decode_with(*(c.make for c in cases))
    )
    stored.check(emission, "constexpr_lut_to_dense", cases)


@pytest.mark.parametrize("ios", [16, 17])
def test_palettes_before_ios_18(emit: Emit, stored: ModuleType, ios: int) -> None:
    cases = []
    for bits in (1, 2, 4, 6, 8):
        case, indices, lut = stored.palette(bits)
        # A stream of numbers of so many bits, the lowest bit first, cut into bytes.
        stream = "".join(format(int(i), f"0{bits}b")[::-1] for i in indices.flatten())
        packed = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
        case.constants = {
            "indices": torch.tensor(packed, dtype=torch.uint8), "lut": lut[0].half(),
            "shape": torch.tensor([stored.OUT, stored.WIDE], dtype=torch.uint32),
        }  # fmt: skip
        case.element = "uint8"
        cases.append(case)
    net = stored.Layers(*(nn.Linear(stored.WIDE, stored.OUT) for _ in cases))
    change = stored.decode_with(*(c.make for c in cases))
    emission = emit(net, torch.randn(3, stored.WIDE), change=change, ios=ios)
    stored.check(emission, "constexpr_lut_to_dense", cases)


def test_palettes_with_a_scale_a_channel(emit: Emit, stored: ModuleType) -> None:
    parts = [(*stored.palette(4, groups)[1:], stored.scales_of(stored.OUT)) for groups in (1, 4)]

    def make(part: tuple[Tensor, ...]) -> Callable[[Graph], fx.Node]:
        names = ("indices", "lut", "scale")
        return lambda graph: graph.add_call(
            LOOKUP, *(graph.add_constant(n, t) for n, t in zip(names, part, strict=True)), 16
        )

    net = stored.Layers(nn.Linear(stored.WIDE, stored.OUT), nn.Linear(stored.WIDE, stored.OUT))
    emission = emit(net, torch.randn(3, stored.WIDE), change=stored.decode_with(*map(make, parts)))
    entries = stored.ours(emission, "constexpr_lut_to_dense")
    scaled = stored.ours(emission, "constexpr_blockwise_shift_scale")
    read = stored.theirs(emission.folder, "constexpr_blockwise_shift_scale")
    for index, (indices, lut, scale) in enumerate(parts):
        np.testing.assert_array_equal(entries[index][1]["indices"], indices.numpy())
        np.testing.assert_array_equal(entries[index][1]["lut"].flatten(), lut.half().flatten())
        np.testing.assert_array_equal(scaled[index][1]["scale"][:, 0], scale.half().numpy())
        expected = (
            stored.looked_up(indices, lut).astype(np.float64) * scale.double()[:, None].numpy()
        )
        np.testing.assert_array_equal(stored.decoded(read[index]), expected.astype(np.float16))
    assert emission.gate()["passed"], emission.gate()


def test_a_palette_of_int8(emit: Emit, stored: ModuleType) -> None:
    codes, step = stored.codes_of(8, signed=True, shape=(1, 16)), stored.scales_of(1, 1)
    indices = stored.indices_of(4)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("step", step)]
        lut = graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)
        return graph.add_call(LOOKUP, graph.add_constant("indices", indices), lut, None, 16)

    net = stored.Layers(nn.Linear(stored.WIDE, stored.OUT))
    emission = emit(net, torch.randn(3, stored.WIDE), change=stored.decode_with(make))
    ((_, table),) = stored.ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(table["data"].reshape(1, 16), codes.numpy())
    assert table["scale"].flatten() == step.half().numpy().flatten()
    ((_, entries),) = stored.ours(emission, "constexpr_lut_to_dense")
    np.testing.assert_array_equal(entries["indices"], indices.numpy())
    (read,) = stored.theirs(emission.folder, "constexpr_blockwise_shift_scale")
    lut = (codes.double() * step.double()).half()
    np.testing.assert_array_equal(stored.decoded(read).flatten(), lut.flatten())
    (read,) = stored.theirs(emission.folder, "constexpr_lut_to_dense")
    np.testing.assert_array_equal(read.indices.val, indices.numpy())
    exact = {r["name"]: r["differing"] for r in emission.rows if "exact" in r}
    assert exact == {"indices": 0.0, "codes": 0.0}
    assert emission.gate()["passed"], emission.gate()
