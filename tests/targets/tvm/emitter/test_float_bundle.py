"""Bundles with float kernels: each precision of weights, built, verified value by value, and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile
from qcompile.compiler.ir.errors import GateError
from qcompile.targets.tvm import float_layers
from qcompile.targets.tvm.kernels import float_tile
from qcompile.targets.tvm.kernels.vectors import constant

X86 = "x86-avx512-vnni"
PRECISIONS = ["fp32", "w8a16", "int4"]
LAYERS = {"first", "depthwise", "point", "head"}


SLOW = [pytest.param(precision, marks=pytest.mark.slow) for precision in ("fp32", "w8a16")]


@pytest.fixture(scope="module", params=["int4", *SLOW])
def float_bundle(request: Any, build_for: Any, tmp_path_factory: Any) -> qcompile.Bundle:
    """A bundle of each precision, which no test may change."""
    folder = tmp_path_factory.mktemp("floats")
    found: qcompile.Bundle = build_for(folder, X86, precision=request.param)
    return found


def test_each_layer_and_each_weight_is_compared(float_bundle: qcompile.Bundle) -> None:
    assert float_bundle.passed
    assert float_bundle.manifest.floats == (), "no layer is left to TVM's default schedule"
    rows = float_bundle.manifest.parity["engine"]
    layers = [row for row in rows if "limit_db" in row]
    assert len(layers) == len(LAYERS) + 1, "and the sum"
    assert min(row["sqnr_db"] or 999.0 for row in layers) > 110
    assert {row["limit_db"] for row in layers} == {90.0}
    exact = {row["name"].partition(".")[0]: row for row in rows if row.get("exact")}
    assert exact.keys() == LAYERS
    assert all(row["differing"] == 0 for row in exact.values())


def test_outputs_are_near_the_floats(
    float_bundle: qcompile.Bundle, make_images: Any, tiny_outputs: Any
) -> None:
    session = qcompile.load(float_bundle.path)
    limit = {"fp32": 110, "w8a16": 35, "int4": 12}[float_bundle.manifest.precision]
    for count in (1, 7):
        x = make_images(count, 9)
        expected = tiny_outputs(x)
        (found,) = session.run({"image": x}).values()
        noise = np.square(expected - found).sum()
        assert 10 * np.log10(np.square(expected).sum() / noise) > limit


def forget_the_bias(monkeypatch: pytest.MonkeyPatch) -> str:
    """Let sums start from 0."""
    monkeypatch.setattr(float_tile.Tile, "_start", lambda self, block: constant(0.0, self.lanes))
    return "relu"


def swap_halves(monkeypatch: pytest.MonkeyPatch) -> str:
    """Store the second code of a byte where the first one is read."""
    real = float_layers.weights.pack

    def swapped(*args: Any) -> Any:
        packed = real(*args).view(np.uint8)
        return ((packed << 4) | (packed >> 4)).view(np.int8)

    monkeypatch.setattr(float_layers.weights, "pack", swapped)
    return "relu"


@pytest.mark.parametrize(
    ("precision", "damage"),
    [pytest.param("fp32", forget_the_bias, marks=pytest.mark.slow), ("int4", swap_halves)],
)
def test_a_wrong_kernel_is_caught(
    precision: str, damage: Any, build_for: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = damage(monkeypatch)
    match = rf"engine: \d value\(s\) differ .*, first {first}"
    with pytest.raises(GateError, match=match) as caught:
        build_for(tmp_path, X86, precision=precision)
    rejected: Any = caught.value.bundle
    rows = rejected.manifest.parity["engine"]
    exact = [row["differing"] == 0 for row in rows if row.get("exact")]
    assert all(exact) == (precision == "fp32")


@pytest.mark.slow
def test_a_float_layer_among_codes_is_compared_too(build_for: Any, tmp_path: Path) -> None:
    found = build_for(tmp_path, X86, precision="int8", keep_float=frozenset({"first.weight"}))
    assert found.passed
    rows = found.manifest.parity["engine"]
    kinds = {(row["name"], "limit_db" in row) for row in rows if not row.get("exact")}
    both = {name for name, is_float in kinds if is_float and (name, False) in kinds}
    assert len(both) == 1, "its floats, and the codes that they become"
    assert [row["name"] for row in rows if row.get("exact")] == ["first.weight"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("device", ["x86-avx2", "raspberry-pi-4", "raspberry-pi-5"])
def test_other_cpus(device: str, precision: str, build_for: Any, tmp_path: Path) -> None:
    found = build_for(tmp_path, device, precision=precision, odd=True)
    assert found.passed
    assert found.manifest.floats == ()
    rows = [row for row in found.manifest.parity["engine"] if "limit_db" in row]
    assert len(rows) == 5
    assert min(row["sqnr_db"] or 999.0 for row in rows) > 110
