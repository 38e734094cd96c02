"""Rows of error engine: what differs between the package and the graph, by name and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE_BLOCKWISE, aten
from qcompile.targets.coreml import emitter
from qcompile.targets.coreml.compare import LIMIT_DB
from qcompile.targets.coreml.emitter import EMITTER
from qcompile.targets.coreml.reference.program import Stored

Emit = Callable[..., Any]
SIZE = 12


class Twins(nn.Module):
    """Two layers, and a value that is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + F.relu(self.second(x))  # type: ignore[no-any-return]


def in_codes(*codes: Tensor) -> Callable[[Graph], None]:
    """Return a change that stores the weights of the layers as these codes, by one scale each."""

    def change(graph: Graph) -> None:
        for layer, found in zip(graph.calls(aten.linear.default), codes, strict=True):
            weight: Any = layer.args[1]
            name = str(weight.target).replace(".weight", "_codes")
            with graph.before(layer):
                stored = graph.add_constant(name, found)
                scale = graph.add_constant(name + "_scale", torch.full((1, 1), 2.0**-6))
                new = graph.add_call(DEQUANTIZE_BLOCKWISE, stored, scale, None, 8, 16)
            layer.replace_input_with(weight, new)

    return change


def codes() -> Tensor:
    return torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8)


def weight_rows(emission: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in emission.rows if row.get("exact")}


def rewrite_code(emission: Any, name: str) -> None:
    """Change one byte of a weight in the package on disk by one."""
    package = emission.package
    (decoder,) = [
        o for o in emission.operations("constexpr_blockwise_shift_scale")
        if emission.emitted.origins.get(o.outputs[0][0].removesuffix("_cast_fp16")) == name
    ]  # fmt: skip
    value = decoder.inputs["data"]
    assert isinstance(value, Stored)
    blob = package.blobs[value.file]
    start, size = blob.locate(value.offset, value.type.element, (SIZE, SIZE))
    assert size == SIZE * SIZE
    content = bytearray(blob.file.read_bytes())
    content[start + 17] ^= 1
    blob.file.write_bytes(bytes(content))


def test_one_code_that_differs_on_disk_is_reported(emit: Emit) -> None:
    """Of 144 values one is off by a step; the layer's other weight is equal."""
    emission = emit(Twins(), torch.randn(2, SIZE), change=in_codes(codes(), codes()))
    assert [r["differing"] for r in weight_rows(emission).values()] == [0.0, 0.0]
    assert emission.gate()["passed"]
    first = emission.graph.calls(DEQUANTIZE_BLOCKWISE)[0]
    rewrite_code(emission, first.name)
    rows = weight_rows(emission)
    assert rows["first_codes"]["differing"] == pytest.approx(1 / SIZE**2)
    assert rows["first_codes"]["largest"] == 2.0**-6
    assert rows["second_codes"]["differing"] == 0
    gate = emission.gate()
    assert not gate["passed"]
    assert "first first_codes: by up to 0.015625, 0.69 % of its values" in gate["message"]


def test_equal_weights_that_are_stored_once_are_equal(emit: Emit) -> None:
    same = codes()
    emission = emit(Twins(), torch.randn(2, SIZE), change=in_codes(same, same.clone()))
    assert len(emission.operations("constexpr_blockwise_shift_scale")) == 1
    assert [r["differing"] for r in weight_rows(emission).values()] == [0.0, 0.0]
    assert emission.gate()["passed"]


def test_a_weight_that_is_not_in_the_package_differs_in_every_value(
    emit: Emit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emitter that writes the floats of one layer, though they are equal, has lost the codes."""
    lower = emitter.lower

    def forgets(graph: Graph) -> Any:
        changed = graph.copy()
        node = changed.calls(DEQUANTIZE_BLOCKWISE)[0]
        value = node.target(*[changed.constant(a) if hasattr(a, "op") else a for a in node.args])
        with changed.before(node):
            changed.replace(node, changed.add_constant("plain", value))
        changed.erase_unused()
        return lower(changed)

    monkeypatch.setattr(emitter, "lower", forgets)
    emission = emit(Twins(), torch.randn(2, SIZE), change=in_codes(codes(), codes()))
    rows = weight_rows(emission)
    assert (rows["first_codes"]["differing"], rows["first_codes"]["largest"]) == (1.0, math.inf)
    assert rows["second_codes"]["differing"] == 0
    assert not emission.gate()["passed"]


class Window(nn.Module):
    """A pooling whose padding decides about the size of the output."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2, 2, padding=1)


def test_an_output_of_another_shape_is_reported(
    emit: Emit, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower = emitter.lower

    def wrong(graph: Graph) -> Any:
        changed = graph.copy()
        (pool,) = changed.calls(aten.max_pool2d.default)
        pool.args = (*pool.args[:3], [0, 0])
        return lower(changed)

    monkeypatch.setattr(emitter, "lower", wrong)
    emission = emit(Window(), torch.randn(1, 1, 4, 4))
    gate = emission.gate()
    assert not gate["passed"]
    assert "first output: by up to inf, 100.00 % of its values" in gate["message"]


def test_each_value_is_judged_on_the_packages_own(emit: Emit) -> None:
    """A layer's rounding to float16 does not show in the rows after it."""
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh()) for _ in range(6)])
    emission = emit(layers, torch.randn(64, SIZE))
    found = [r["sqnr_db"] for r in emission.rows if r["sqnr_db"] is not None]
    assert len(found) >= 12
    assert min(found) > max(LIMIT_DB[16], 65)
    assert abs(found[-2] - found[1]) < 8, "the last layer is as near as the first"


def test_inputs_are_read_and_not_changed(emit: Emit) -> None:
    emission = emit(Twins(), torch.randn(2, SIZE))
    arrays = emission.arrays
    before = {name: np.array(value) for name, value in arrays.items()}
    EMITTER.engine_errors(emission.graph, Path(emission.folder), emission.emitted, arrays)
    for name, value in before.items():
        np.testing.assert_array_equal(arrays[name], value)
