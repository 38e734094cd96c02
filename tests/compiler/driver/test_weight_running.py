"""Limits of memory and time of models that are no language models, as ONNX Runtime measures them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions, build, weight_running
from qcompile.compiler.driver.bench import bench
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.plan import Plan
from qcompile.compiler.driver.problem import Problem
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.targets.coreml.emitter import CoremlEmitter
from qcompile.targets.plans import TokenTimes

MIB = 1 << 20


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 8)).eval()
    shapes = {"input": {0: torch.export.Dim("batch", min=1, max=64)}}
    return from_module(module, {"input": torch.randn(2, 64)}, dynamic_shapes=shapes, name="net")


def options(budget: Budget, **changes: Any) -> BuildOptions:
    data = {"input": torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).numpy()}
    given: dict[str, Any] = {"target": "host", "format": "onnx", "calibrate": data}
    return BuildOptions(**{**given, "budget": budget, **changes})


def gate(manifest: Any, name: str) -> Mapping[str, Any]:
    return next(g for g in manifest.gates if g["gate"] == name)


def test_both_are_measured_of_the_artifact(source: Source, tmp_path: Path) -> None:
    budget = Budget(max_ram=400 * MIB, max_latency=50.0, optimize="latency")
    bundle = build(source, tmp_path / "a.qc", options(budget))
    again = bench(bundle.path, runs=20)

    ram, time = (gate(bundle.manifest, name) for name in ("max-ram", "max-latency"))
    assert ram["passed"]
    assert time["passed"]
    assert ram["measured"] == pytest.approx(again.peak_rss_mib * MIB, rel=0.2)
    assert 0 < time["measured"] < 50
    plan = bundle.manifest.plan
    assert plan["ram"] <= 400 * MIB
    assert 0 < plan["milliseconds"] < 50


def test_both_are_modelled_of_a_device_that_is_not_here(source: Source, tmp_path: Path) -> None:
    """Values of the network are 64 inputs, 512 and 8 numbers of two bytes; their example has two samples."""
    pytest.importorskip("coremltools")
    apple = {"target": "apple-m2", "format": None}
    plain = build(source, tmp_path / "a.qc", options(Budget(max_latency=1.0), **apple)).manifest
    most, size = plain.plan["milliseconds"], plain.sizes["artifact_bytes"]
    budget = Budget(max_ram=size - 8000, max_latency=0.7 * most)
    file = tmp_path / "plan.json"
    found = build(source, tmp_path / "b.qc", options(budget, save_plan=file, **apple)).manifest
    again = build(source, tmp_path / "d.qc", options(budget, plan_file=file, **apple)).manifest

    assert gate(again, "max-ram") == gate(found, "max-ram")
    assert gate(again, "max-latency") == gate(found, "max-latency")
    ram, time = gate(found, "max-ram"), gate(found, "max-latency")
    assert ram["passed"]
    assert time["passed"]
    assert ram["measured"] == found.sizes["artifact_bytes"] + 2 * 2 * (64 + 512)
    assert ram["message"].startswith(
        f"{ram['measured']:,} bytes of weights and activations, modelled"
    )
    assert time["measured"] == pytest.approx(found.plan["milliseconds"])
    assert "ms a call, modelled from the peaks of apple-m2's memory" in time["message"]
    with pytest.raises(BudgetError, match="the least time about"):
        build(source, tmp_path / "c.qc", options(Budget(max_latency=0.01 * most), **apple))


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(max_ram=1 * MIB), "bytes of memory are needed besides the file"),
        (Budget(max_latency=1e-6), "the least time about"),
    ],
)
def test_what_nothing_keeps(source: Source, tmp_path: Path, budget: Budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        build(source, tmp_path / "a.qc", options(budget))

    assert caught.value.nearest
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("budget", "changes", "message"),
    [
        (Budget(max_latency=5.0), {"target": "apple-m2"}, "neither measured here nor .* give --target host"),
        (Budget(max_latency=5.0), {"target": "raspberry-pi-5"}, "give --target host"),
        (Budget(max_ram=400 * MIB, context=64), {}, "--context is of language models"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured(
    source: Source, tmp_path: Path, budget: Budget, changes: Mapping[str, Any], message: str
) -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(TargetError, match=message):
        build(source, tmp_path / "a.qc", options(budget, **changes))


def test_memory_of_which_nothing_is_known(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("coremltools")
    monkeypatch.setattr(CoremlEmitter, "neural_engine", False)
    apple = options(Budget(max_ram=400 * MIB), target="apple-m2", format=None)
    with pytest.raises(
        TargetError, match="neither measured here nor modelled, so there is no --max-ram"
    ):
        build(source, tmp_path / "a.qc", apple)


def test_what_was_measured_is_learned() -> None:
    times = TokenTimes({"w": {"int8": 2.0}}, 1.0, modelled=False)
    problem = Problem((), {}, 100, 1, 0, beside=1000, times=times)
    plan = Plan({}, bytes=50, ram=1150, milliseconds=3.0)
    gates = {"max-ram": {"measured": 1300.0}, "max-latency": {"measured": 6.0}}

    found = weight_running.corrected(problem, plan, gates, off=30)
    assert found.beside == 1000 + 1300 - 1150 - 30
    assert found.times == TokenTimes({"w": {"int8": 4.0}}, 2.0, modelled=False)
    small = {name: {"measured": 1.0} for name in gates}
    assert weight_running.corrected(problem, replace(plan), small, off=0) == problem
