"""What each weight of a package may be, and how many bytes that really takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import WeightFormat
from qcompile.passes import base
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.base import find_emitter
from qcompile.targets.device import load_device
from qcompile.targets.order import Order, Recipe
from qcompile.targets.plans import TensorChoices

pytest.importorskip("coremltools")
EMITTER, DEVICE = find_emitter("coreml"), load_device("apple-m2")


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1),
    ]
    found = trace(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 48)).eval(), torch.zeros(1, 3, 8, 8)
    )
    base.run(found, EMITTER.float_passes())
    return found


def package_bytes(graph: Graph, kind: str | None, folder: Path) -> tuple[int, int]:
    """Return the bytes of a package whose weights have a format where they can, and what was predicted."""
    formats, difference = {}, 0
    for choice in EMITTER.weight_choices(graph, DEVICE):
        names = [f.name for f in choice.formats]
        place = names.index(kind) if kind in names else len(names) - 1
        chosen = choice.formats[place]
        assert isinstance(chosen, WeightFormat)
        formats[choice.name] = chosen.spec
        difference += choice.bytes[place] - choice.float_bytes
    scheme, own = EMITTER.mixed_scheme(DEVICE), graph.copy()
    x = torch.randn(8, 3, 8, 8)
    samples = Samples([{"input": row[None]} for row in x], 8, "test")
    if kind is None:
        scheme = replace(scheme, weight=None)
    recipe = Recipe(scheme, samples, QuantizationLog(), formats=formats, rounding="nearest")
    base.run(own, EMITTER.passes(recipe))
    written = EMITTER.emit(own, folder, Order("net", DEVICE, scheme))
    return sum((folder / f).stat().st_size for f in written.files), difference


def test_bytes_are_what_packages_have(graph: Graph, tmp_path: Path) -> None:
    (tmp_path / "float").mkdir()
    floats, _ = package_bytes(graph, None, tmp_path / "float")
    for kind in ("palette-4", "palette-2-channel-scales", "int4", "int8"):
        (tmp_path / kind).mkdir()
        found, difference = package_bytes(graph, kind, tmp_path / kind)
        assert found == pytest.approx(floats + difference, abs=3 * 64), kind


def names(choices: TensorChoices) -> set[str]:
    return {format.name for format in choices.formats}


def test_an_older_system_loads_fewer_formats(graph: Graph) -> None:
    new, old = (
        EMITTER.weight_choices(graph, device)[1]
        for device in (DEVICE, DEVICE.with_os_minimum("13.0"))
    )

    assert {"palette-3", "int4", "palette-4-channel-scales", "palette-4-per-tensor"} <= names(new)
    palettes = {*(f"palette-{n}" for n in (1, 2, 4, 6)), "palette-8-per-tensor"}
    assert names(old) == palettes | {"int8", "fp16"}


def test_what_takes_no_less_than_floats_is_not_offered(graph: Graph) -> None:
    for choice in EMITTER.weight_choices(graph, DEVICE):
        *coded, plain = choice.bytes
        assert plain == choice.float_bytes
        assert all(size < plain for size in coded)


def test_a_table_that_is_the_output_layer_too_is_one_choice() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(64, 32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(torch.tanh(self.table(ids)), self.table.weight)

    tied = trace(Tied(), torch.zeros(2, 4, dtype=torch.int64))
    (choice,) = EMITTER.weight_choices(tied, DEVICE)
    assert "palette-4" in names(choice)


def test_pins(graph: Graph) -> None:
    pinned = EMITTER.weight_choices(graph, DEVICE, [(r"^0\.", "int8")], frozenset())
    assert names(pinned[0]) == {"int8"}
    assert all(len(choice.formats) > 1 for choice in pinned[1:])
    with pytest.raises(
        TargetError, match=r"0\.weight can be .*fp16, not q4_k; no weight has nowhere"
    ):
        EMITTER.weight_choices(graph, DEVICE, [(r"^0\.", "q4_k"), ("nowhere", "int8")])
