"""Codes, tables, scales and zero points of the graph arrive in the package bit for bit.

Each package is read twice: by the reference reader, and by coremltools' own reader of saved programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import (
    DEQUANTIZE,
    DEQUANTIZE_BLOCKWISE,
    DEQUANTIZE_PER_CHANNEL,
    LOOKUP,
    QUANTIZE,
    aten,
)
from qcompile.targets.coreml.reference.program import Name, Operation, Stored
from qcompile.targets.coreml.tools import load_coremltools, quiet

Emit = Callable[..., Any]
Array = NDArray[Any]
OUT, IN, WIDE = 8, 12, 36
CODES = ("data", "quantized_data", "indices")
"""What MIL calls the inputs that hold codes."""


def _codes(bits: int, *, signed: bool, shape: tuple[int, ...] = (OUT, IN)) -> Tensor:
    low = -(1 << (bits - 1)) if signed else 0
    codes = torch.randint(low, low + (1 << bits), shape)
    codes.view(-1)[:2] = torch.tensor([low, low + (1 << bits) - 1])  # both ends are used
    return codes.to(torch.int8 if signed else torch.uint8)


def _scales(*shape: int) -> Tensor:
    return (torch.rand(shape) * 0.05 + 0.01).half().float()


class Layers(nn.Module):
    """The sum of what some layers make of one input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return [layer(x) for layer in self.layers]


@dataclass
class Case:
    """One stored weight.

    Args:
        make: Adds its constants and its decoder to a graph.
        constants: What the package must hold, by MIL's names.
        expected: What they decode to, exactly.
        element: MIL's type of the codes.
    """

    make: Callable[[Graph], fx.Node]
    constants: dict[str, Tensor]
    expected: Array
    element: str


def decode_with(*makers: Callable[[Graph], fx.Node]) -> Callable[[Graph], None]:
    """Return a change that lets layer i read what maker i adds instead of its weight."""

    def change(graph: Graph) -> None:
        for index, make in enumerate(makers):
            name = f"layers.{index}.weight"
            (weight,) = [n for n in graph.nodes if str(n.target) == name]
            (layer,) = weight.users
            with graph.before(layer):
                layer.replace_input_with(weight, make(graph))

    return change


def ours(emission: Any, kind: str) -> list[tuple[Operation, dict[str, Array]]]:
    """Return the ops of a kind, each with its constants, as the reference reader finds them."""
    constants = {o.outputs[0][0]: o.inputs["val"] for o in emission.operations("const")}
    rows = []
    for operation in emission.operations(kind):
        found = {}
        for key, value in operation.inputs.items():
            known = constants.get(value, value) if isinstance(value, Name) else value
            if isinstance(known, Stored):
                known = emission.package.load(known)
            if isinstance(known, Tensor):
                found[key] = known.numpy()
        rows.append((operation, found))
    return rows


def theirs(folder: Path, kind: str) -> list[Any]:
    """Return the ops of a kind in a saved package, read by coremltools."""
    ct = load_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    with quiet():
        model = ct.models.MLModel(str(folder / "model.mlpackage"), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
    return [o for o in program.functions["main"].operations if o.op_type == kind]


def decoded(op: Any) -> Array:
    """Return what coremltools decodes a ``constexpr`` op to."""
    return np.asarray(op.materialized_val_inference())


def check(emission: Any, kind: str, cases: list[Case]) -> None:
    """Compare codes and decoded values in both readers, and let the gate run the package."""
    read = zip(ours(emission, kind), theirs(emission.folder, kind), cases, strict=True)
    for (operation, found), other, case in read:
        for key, value in case.constants.items():
            np.testing.assert_array_equal(found[key], value.numpy(), err_msg=key)
            again = getattr(other, key).val.astype(value.numpy().dtype)
            np.testing.assert_array_equal(again, value.numpy(), err_msg=key)
        codes = [v for k, v in operation.inputs.items() if k in CODES]
        assert [v.type.element.name for v in codes if isinstance(v, Stored)] == [case.element]
        assert operation.outputs[0][1].dtype == torch.float16
        assert decoded(other).dtype == np.float16
        np.testing.assert_array_equal(decoded(other), case.expected.astype(np.float16))
    exact = [(r["exact"], r["differing"]) for r in emission.rows if "exact" in r]
    assert exact == [(True, 0.0)] * len(cases)
    assert emission.gate()["passed"], emission.gate()


def affine(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Array:
    """``scale * (codes - zero)`` in float64, blocks spread by hand."""
    steps = codes.double()
    for axis in range(codes.dim()):
        repeat = codes.shape[axis] // scale.shape[axis]
        scale = scale.repeat_interleave(repeat, axis)
        zero = None if zero is None else zero.repeat_interleave(repeat, axis)
    steps = steps if zero is None else steps - zero.double()
    return (steps * scale.double()).numpy()


def integers(bits: int, grid: tuple[int, ...], *, signed: bool, has_offset: bool) -> Case:
    """Return codes with a scale for each cell of a grid."""
    codes, scale = _codes(bits, signed=signed), _scales(*grid)
    zero = _codes(bits, signed=signed, shape=(*grid, 2))[..., 1] if has_offset else None

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
        offset = None if zero is None else graph.add_constant("zero", zero)
        return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, offset, bits, 16)

    constants = {"data": codes, "scale": scale.half()}
    constants |= {} if zero is None else {"offset": zero}
    element = f"{'' if signed else 'u'}int{bits}"
    return Case(make, constants, affine(codes, scale, zero), element)


GRIDS = ((OUT, IN // 4), (1, 1), (OUT, 1), (2, 3))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("form", ["signed", "signed with offset", "unsigned with offset"])
def test_blocks_on_ios_18(emit: Emit, bits: int, form: str) -> None:
    signed, has_offset = not form.startswith("un"), form.endswith("offset")
    cases = [integers(bits, grid, signed=signed, has_offset=has_offset) for grid in GRIDS]
    net = Layers(*(nn.Linear(IN, OUT) for _ in cases))
    emission = emit(net, torch.randn(3, IN), change=decode_with(*(c.make for c in cases)))
    check(emission, "constexpr_blockwise_shift_scale", cases)


@pytest.mark.parametrize("ios", [16, 17])
def test_eight_bits_before_ios_18(emit: Emit, ios: int) -> None:
    cases = []
    for signed in (True, False):
        for shape in ((OUT, 1), (1, 1)):
            case = integers(8, shape, signed=signed, has_offset=not signed)
            flat = (-1,) if shape[0] == OUT else ()
            codes, scale = case.constants["data"], case.constants["scale"]
            zeros = case.constants.get("offset", torch.zeros(shape, dtype=codes.dtype))
            case.constants = {
                "quantized_data": codes, "scale": scale.reshape(flat),
                "zero_point": zeros.reshape(flat),
            }  # fmt: skip
            cases.append(case)
    net = Layers(*(nn.Linear(IN, OUT) for _ in cases))
    change = decode_with(*(c.make for c in cases))
    emission = emit(net, torch.randn(3, IN), change=change, ios=ios)
    check(emission, "constexpr_affine_dequantize", cases)


@pytest.mark.parametrize(
    ("ios", "kind", "key"),
    [
        (16, "constexpr_affine_dequantize", "quantized_data"),
        (18, "constexpr_blockwise_shift_scale", "data"),
    ],
)
def test_a_convolutions_channels(emit: Emit, ios: int, kind: str, key: str) -> None:
    """Output channels are axis 0 of a convolution; of a transposed one they are axis 1."""
    layers = (nn.Conv2d(5, 7, 3), nn.ConvTranspose2d(5, 7, 3))
    codes = [_codes(8, signed=True, shape=tuple(layer.weight.shape)) for layer in layers]
    scales = [_scales(7) for _ in layers]

    def make(axis: int) -> Callable[[Graph], fx.Node]:
        def add(graph: Graph) -> fx.Node:
            stored = [
                graph.add_constant("codes", codes[axis]),
                graph.add_constant("scale", scales[axis]),
                graph.add_constant("zero", torch.zeros(7, dtype=torch.int64)),
            ]
            return graph.add_call(DEQUANTIZE_PER_CHANNEL, *stored, axis, -128, 127, torch.int8)

        return add

    change = decode_with(make(0), make(1))
    emission = emit(Layers(*layers), torch.randn(1, 5, 9, 9), change=change, ios=ios, float_bits=32)
    read = zip(ours(emission, kind), theirs(emission.folder, kind), strict=True)
    for axis, ((_, found), other) in enumerate(read):
        np.testing.assert_array_equal(found[key], codes[axis].numpy())
        expected = codes[axis].float() * scales[axis].reshape([(-1, 1, 1, 1), (-1, 1, 1)][axis])
        np.testing.assert_array_equal(decoded(other), expected.numpy())
    assert emission.gate()["passed"], emission.gate()


def _indices(bits: int) -> Tensor:
    found = torch.randint(0, 1 << bits, (OUT, WIDE))
    found.view(-1)[: 1 << bits] = torch.arange(1 << bits)  # all entries are used
    return found.to(torch.uint8)


def _table(groups: int, bits: int) -> Tensor:
    return torch.randn(groups, 1 << bits).sort(1).values.half().float()


def looked_up(indices: Tensor, lut: Tensor) -> Array:
    """Return the entries, a row at a time."""
    group = OUT // len(lut)
    return torch.stack([lut[row // group][indices[row].long()] for row in range(OUT)]).numpy()


def palette(bits: int, groups: int = 1) -> tuple[Case, Tensor, Tensor]:
    """Return a weight of indices, with indices and tables."""
    indices, lut = _indices(bits), _table(groups, bits)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("indices", indices), graph.add_constant("lut", lut)]
        return graph.add_call(LOOKUP, *stored, None, 16)

    table = lut.half().reshape(groups, 1, 1 << bits, 1)
    constants = {"indices": indices, "lut": table}
    return Case(make, constants, looked_up(indices, lut), f"uint{bits}"), indices, lut


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_palettes_on_ios_18(emit: Emit, bits: int) -> None:
    cases = [palette(bits, groups)[0] for groups in (1, 2, OUT)]
    net = Layers(*(nn.Linear(WIDE, OUT) for _ in cases))
    emission = emit(net, torch.randn(3, WIDE), change=decode_with(*(c.make for c in cases)))
    check(emission, "constexpr_lut_to_dense", cases)


@pytest.mark.parametrize("ios", [16, 17])
def test_palettes_before_ios_18(emit: Emit, ios: int) -> None:
    cases = []
    for bits in (1, 2, 4, 6, 8):
        case, indices, lut = palette(bits)
        # A stream of numbers of so many bits, the lowest bit first, cut into bytes.
        stream = "".join(format(int(i), f"0{bits}b")[::-1] for i in indices.flatten())
        packed = [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
        case.constants = {
            "indices": torch.tensor(packed, dtype=torch.uint8), "lut": lut[0].half(),
            "shape": torch.tensor([OUT, WIDE], dtype=torch.uint32),
        }  # fmt: skip
        case.element = "uint8"
        cases.append(case)
    net = Layers(*(nn.Linear(WIDE, OUT) for _ in cases))
    change = decode_with(*(c.make for c in cases))
    emission = emit(net, torch.randn(3, WIDE), change=change, ios=ios)
    check(emission, "constexpr_lut_to_dense", cases)


def test_palettes_with_a_scale_a_channel(emit: Emit) -> None:
    parts = [(*palette(4, groups)[1:], _scales(OUT)) for groups in (1, 4)]

    def make(part: tuple[Tensor, ...]) -> Callable[[Graph], fx.Node]:
        names = ("indices", "lut", "scale")
        return lambda graph: graph.add_call(
            LOOKUP, *(graph.add_constant(n, t) for n, t in zip(names, part, strict=True)), 16
        )

    net = Layers(nn.Linear(WIDE, OUT), nn.Linear(WIDE, OUT))
    emission = emit(net, torch.randn(3, WIDE), change=decode_with(*map(make, parts)))
    entries = ours(emission, "constexpr_lut_to_dense")
    scaled = ours(emission, "constexpr_blockwise_shift_scale")
    read = theirs(emission.folder, "constexpr_blockwise_shift_scale")
    for index, (indices, lut, scale) in enumerate(parts):
        np.testing.assert_array_equal(entries[index][1]["indices"], indices.numpy())
        np.testing.assert_array_equal(entries[index][1]["lut"].flatten(), lut.half().flatten())
        np.testing.assert_array_equal(scaled[index][1]["scale"][:, 0], scale.half().numpy())
        expected = looked_up(indices, lut).astype(np.float64) * scale.double()[:, None].numpy()
        np.testing.assert_array_equal(decoded(read[index]), expected.astype(np.float16))
    assert emission.gate()["passed"], emission.gate()


def test_a_palette_of_int8(emit: Emit) -> None:
    indices, codes, step = _indices(4), _codes(8, signed=True, shape=(1, 16)), _scales(1, 1)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("step", step)]
        lut = graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)
        return graph.add_call(LOOKUP, graph.add_constant("indices", indices), lut, None, 16)

    net = Layers(nn.Linear(WIDE, OUT))
    emission = emit(net, torch.randn(3, WIDE), change=decode_with(make))
    ((_, table),) = ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(table["data"].reshape(1, 16), codes.numpy())
    assert table["scale"].flatten() == step.half().numpy().flatten()
    ((_, entries),) = ours(emission, "constexpr_lut_to_dense")
    np.testing.assert_array_equal(entries["indices"], indices.numpy())
    (read,) = theirs(emission.folder, "constexpr_blockwise_shift_scale")
    lut = (codes.double() * step.double()).half()
    np.testing.assert_array_equal(decoded(read).flatten(), lut.flatten())
    (read,) = theirs(emission.folder, "constexpr_lut_to_dense")
    np.testing.assert_array_equal(read.indices.val, indices.numpy())
    exact = {r["name"]: r["differing"] for r in emission.rows if "exact" in r}
    assert exact == {"indices": 0.0, "codes": 0.0}
    assert emission.gate()["passed"], emission.gate()


@pytest.mark.parametrize(("dtype", "zero"), [(torch.int8, 0), (torch.int8, -7), (torch.uint8, 131)])
@pytest.mark.parametrize("ios", [17, 18])
def test_activations_in_codes(emit: Emit, dtype: torch.dtype, zero: int, ios: int) -> None:
    limits = (0.0302734375, zero, *((-128, 127) if dtype == torch.int8 else (0, 255)), dtype)

    def change(graph: Graph) -> None:
        (layer,) = graph.calls(aten.linear.default)
        x = layer.args[0]
        assert isinstance(x, fx.Node)
        with graph.before(layer):
            codes = graph.add_call(QUANTIZE, x, *limits, name="x_q")
            layer.replace_input_with(x, graph.add_call(DEQUANTIZE, codes, *limits, name="x_dq"))

    emission = emit(nn.Linear(IN, OUT), torch.randn(3, IN), change=change, ios=ios)
    for kind in ("quantize", "dequantize"):
        ((operation, found),) = ours(emission, kind)
        assert found["scale"] == np.float16(limits[0])
        assert found.get("zero_point", 0) == zero
        assert kind == "dequantize" or operation.outputs[0][1].dtype == dtype
    codes = [r for r in emission.rows if r["sqnr_db"] is None and "limit_db" not in r]
    assert len(codes) == 1
    assert codes[0]["largest"] <= 1
    assert emission.gate()["passed"], emission.gate()


def test_weights_in_codes_of_one_scale(emit: Emit) -> None:
    codes, limits = _codes(8, signed=False), (0.02, 128, 0, 255, torch.uint8)

    def make(graph: Graph) -> fx.Node:
        return graph.add_call(DEQUANTIZE, graph.add_constant("codes", codes), *limits)

    net = Layers(nn.Linear(IN, OUT))
    emission = emit(net, torch.randn(3, IN), change=decode_with(make), float_bits=32)
    ((_, found),) = ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(found["data"], codes.numpy())
    np.testing.assert_array_equal(found["offset"], np.full((1, 1), 128, np.uint8))
    assert emission.gate()["passed"], emission.gate()


def test_a_table_in_codes(emit: Emit) -> None:
    codes, scale = _codes(8, signed=True, shape=(20, 6)), _scales(20, 1)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
        return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, None, 8, 16)

    ids = torch.tensor([[0, 19, 7]])
    emission = emit(Layers(nn.Embedding(20, 6)), ids, change=decode_with(make))
    ((_, found),) = ours(emission, "constexpr_blockwise_shift_scale")
    np.testing.assert_array_equal(found["data"], codes.numpy())
    expected = affine(codes, scale).astype(np.float16)[[[0, 19, 7]]]
    (values,) = emission.run().values()
    np.testing.assert_array_equal(values, expected)
