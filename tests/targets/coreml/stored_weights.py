"""Weights in codes and tables, and what both readers find of them in a package.

A package is read twice: by the reference reader, and by coremltools' own reader of saved programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, LOOKUP
from qcompile.targets.coreml.reference.program import Name, Operation, Stored
from qcompile.targets.coreml.tools import load_coremltools, quiet

Array = NDArray[Any]
OUT, IN, WIDE = 8, 12, 36
GRIDS = ((OUT, IN // 4), (1, 1), (OUT, 1), (2, 3))
"""Scales of a weight: by how many rows and columns of blocks."""
CODES = ("data", "quantized_data", "indices")
"""What MIL calls the inputs that hold codes."""


def codes_of(bits: int, *, signed: bool, shape: tuple[int, ...] = (OUT, IN)) -> Tensor:
    low = -(1 << (bits - 1)) if signed else 0
    codes = torch.randint(low, low + (1 << bits), shape)
    codes.view(-1)[:2] = torch.tensor([low, low + (1 << bits) - 1])  # both ends are used
    return codes.to(torch.int8 if signed else torch.uint8)


def scales_of(*shape: int) -> Tensor:
    return (torch.rand(shape) * 0.05 + 0.01).half().float()


def indices_of(bits: int) -> Tensor:
    found = torch.randint(0, 1 << bits, (OUT, WIDE))
    found.view(-1)[: 1 << bits] = torch.arange(1 << bits)  # all entries are used
    return found.to(torch.uint8)


def table_of(groups: int, bits: int) -> Tensor:
    return torch.randn(groups, 1 << bits).sort(1).values.half().float()


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


def integers(bits: int, grid: tuple[int, ...], *, signed: bool, has_offset: bool) -> Case:
    """Return codes with a scale for each cell of a grid."""
    codes, scale = codes_of(bits, signed=signed), scales_of(*grid)
    zero = codes_of(bits, signed=signed, shape=(*grid, 2))[..., 1] if has_offset else None

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("codes", codes), graph.add_constant("scale", scale)]
        offset = None if zero is None else graph.add_constant("zero", zero)
        return graph.add_call(DEQUANTIZE_BLOCKWISE, *stored, offset, bits, 16)

    constants = {"data": codes, "scale": scale.half()}
    constants |= {} if zero is None else {"offset": zero}
    element = f"{'' if signed else 'u'}int{bits}"
    return Case(make, constants, affine(codes, scale, zero), element)


def palette(bits: int, groups: int = 1) -> tuple[Case, Tensor, Tensor]:
    """Return a weight of indices, with indices and tables."""
    indices, lut = indices_of(bits), table_of(groups, bits)

    def make(graph: Graph) -> fx.Node:
        stored = [graph.add_constant("indices", indices), graph.add_constant("lut", lut)]
        return graph.add_call(LOOKUP, *stored, None, 16)

    table = lut.half().reshape(groups, 1, 1 << bits, 1)
    constants = {"indices": indices, "lut": table}
    return Case(make, constants, looked_up(indices, lut), f"uint{bits}"), indices, lut


def looked_up(indices: Tensor, lut: Tensor) -> Array:
    """Return the entries, a row at a time."""
    group = OUT // len(lut)
    return torch.stack([lut[row // group][indices[row].long()] for row in range(OUT)]).numpy()


def affine(codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> Array:
    """``scale * (codes - zero)`` in float64, blocks spread by hand."""
    steps = codes.double()
    for axis in range(codes.dim()):
        repeat = codes.shape[axis] // scale.shape[axis]
        scale = scale.repeat_interleave(repeat, axis)
        zero = None if zero is None else zero.repeat_interleave(repeat, axis)
    steps = steps if zero is None else steps - zero.double()
    return (steps * scale.double()).numpy()


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
