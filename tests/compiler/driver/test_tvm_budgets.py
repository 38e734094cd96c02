"""Budgets of TVM libraries: each weight has its own format, and libraries have the bytes that were said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, planning
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.front import front
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.targets.options import BlockOptions
from qcompile.targets.tvm import libraries
from qcompile.targets.tvm.probe import FLOAT_LIMIT_DB

pytest.importorskip("tvm", reason="apache-tvm is not installed")
pytestmark = pytest.mark.skipif(
    not libraries.is_native("x86_64"), reason="the libraries are compiled for this machine"
)
BYTES = 160_000
"""A size between those of int4 and of int8 for all weights."""


class Network(nn.Module):
    """Two layers of one shape, that share a kernel while their formats are the same, and one depthwise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.one = nn.Conv2d(64, 64, 3, padding=1)
        self.other = nn.Conv2d(64, 64, 3, padding=1)
        self.spread = nn.Conv2d(64, 16, 1, dilation=2)
        self.last = nn.Linear(16, 10)
        for layer in self.children():
            nn.init.kaiming_normal_(layer.weight)  # type: ignore[arg-type]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.first(image))))
        x = torch.relu(self.other(torch.relu(self.one(x))))
        return self.last(torch.relu(self.spread(x)).mean((2, 3)))


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def source(with_top1: Callable[[nn.Module, torch.Tensor], Source]) -> Source:
    return with_top1(Network().eval(), images(64, 2))


def options(target: str = "tvm", **changes: Any) -> Options:
    return Options(target=target, calibrate={"image": images(32, 1).numpy()}, **changes)


@pytest.fixture(scope="module")
def bundle(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle under a size, which no test may change."""
    folder = tmp_path_factory.mktemp("bundle")
    given = options(budget=Budget(max_size=BYTES), save_plan=folder / "plan.json")
    return build(source, folder / "a.qc", given)


def test_a_size_is_kept_and_was_known_exactly(bundle: Bundle) -> None:
    size = bundle.manifest.sizes["artifact_bytes"]
    plan = bundle.manifest.plan

    assert size == (bundle.path / "model.so").stat().st_size == plan["bytes"]
    assert 0.85 * BYTES < size <= BYTES
    assert plan["builds"] == 1
    assert plan["measured"]["kl"] == pytest.approx(plan["damage"], rel=1.0)


def test_each_weight_has_the_format_of_the_plan(bundle: Bundle) -> None:
    types = bundle.manifest.plan["types"]
    stored = {row["name"]: row["weight"].split()[0] for row in bundle.manifest.layers}

    assert len(set(types.values())) > 1
    assert {n: k.split("-")[0] for n, k in types.items() if k != "fp32"} == stored
    assert types["spread.weight"] == "fp32"  # no kernel decodes it


def test_the_library_computes_with_these_weights(bundle: Bundle) -> None:
    """The error engine compares each layer, and looks for each weight's bytes in the library."""
    rows = {row["name"]: row for row in bundle.manifest.parity["engine"]}
    types = bundle.manifest.plan["types"]
    names = {n if k == "fp32" else f"{n}_codes" for n, k in types.items() if n != "spread.weight"}

    assert bundle.passed
    assert names == {name for name, row in rows.items() if row.get("exact")}
    assert not any(rows[name]["differing"] for name in names)
    assert sum(row.get("limit_db") == FLOAT_LIMIT_DB for row in rows.values()) >= len(names)


def test_a_saved_plan_gives_the_same_library(
    source: Source, bundle: Bundle, tmp_path: Path
) -> None:
    given = options(plan_file=bundle.path.parent / "plan.json")
    again = build(source, tmp_path / "a.qc", given)

    assert again.manifest.files["model.so"] == bundle.manifest.files["model.so"]


@pytest.mark.slow
def test_the_same_again_byte_for_byte(source: Source, bundle: Bundle, tmp_path: Path) -> None:
    again = build(source, tmp_path / "a.qc", options(budget=Budget(max_size=BYTES)))

    assert again.manifest.plan == bundle.manifest.plan
    assert again.manifest.files == bundle.manifest.files


@pytest.mark.slow
def test_sizes_of_the_front_are_those_of_libraries(source: Source, tmp_path: Path) -> None:
    plans = front(source, options()).plans
    assert [p.bytes for p in plans] == sorted({p.bytes for p in plans})
    assert [p.damage for p in plans] == sorted({p.damage for p in plans}, reverse=True)

    middle = plans[len(plans) // 2]
    middle.save(tmp_path / "plan.json")
    made = build(source, tmp_path / "a.qc", options(plan_file=tmp_path / "plan.json"))
    assert made.manifest.sizes["artifact_bytes"] == middle.bytes


@pytest.mark.slow
def test_the_smallest_that_keeps_a_limit_of_quality(source: Source, tmp_path: Path) -> None:
    budget = Budget(optimize="size", max_kl=5e-5)
    made = build(source, tmp_path / "a.qc", options(budget=budget))

    assert made.manifest.plan["measured"]["kl"] <= 5e-5
    assert made.manifest.sizes["artifact_bytes"] < made.manifest.sizes["float_bytes"]


def test_a_size_below_the_smallest_library(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the bytes of a library that was compiled, before any damage is measured."""
    monkeypatch.setattr(planning, "measure_weights", None)
    with pytest.raises(BudgetError, match=r"the smallest file is (\d+,\d+) bytes") as caught:
        build(source, tmp_path / "a.qc", options(budget=Budget(max_size=100_000)))

    assert 100_000 < int(caught.value.nearest[0]["plan"]["bytes"]) < BYTES
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["cuda-sm80", "jetson-orin-nano"])
def test_gpus_have_one_precision(source: Source, target: str, tmp_path: Path) -> None:
    expected = f"{target} computes on its GPU, .* give -p with one of int8, fp16, fp32, or a CPU"
    with pytest.raises(TargetError, match=expected):
        build(source, tmp_path / "a.qc", options(target, budget=Budget(max_size=BYTES)))

    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int4"}, "-p int4 gives all weights one format"),
        (
            {"blocks": BlockOptions((("one", "int2"),))},
            r"one.weight can be int8, int4, int4-per-channel, fp32, not int2",
        ),
        ({"blocks": BlockOptions((("spread", "int8"),))}, r"spread.weight can be fp32, not int8"),
    ],
)
def test_what_no_library_has(
    source: Source, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=message):
        build(source, tmp_path / "a.qc", options(budget=Budget(max_size=BYTES), **changes))

    assert not any(tmp_path.iterdir())
