"""Budgets of models that are no language models: limits are kept by the artifact itself, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, planning, weight_damages, weight_trials
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.front import front
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.compiler.ir.errors import (
    BudgetError,
    CalibrationError,
    GateError,
    ModelError,
    QCompileError,
    TargetError,
)
from qcompile.compiler.stages.cache import StageCache
from qcompile.passes.calibration.way_back import WayBack
from qcompile.targets.options import BlockOptions

CLASSES = 5
TARGETS = ["coreml", "onnx"]


def images(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide = nn.Conv2d(16, 64, 1)
        self.last = nn.Linear(64, CLASSES)
        nn.init.normal_(self.last.weight, std=1.5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.deep(torch.relu(self.first(image))))
        return self.last(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def source(with_top1: Callable[[nn.Module, torch.Tensor], Source]) -> Source:
    return with_top1(Network().eval(), images(128, 2))


def options(target: str, **changes: Any) -> Options:
    return Options(target=target, calibrate={"image": images(64, 1).numpy()}, **changes)


@pytest.fixture(scope="module", params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    if request.param == "coreml":
        pytest.importorskip("coremltools")
    return str(request.param)


@pytest.fixture(scope="module")
def onnx_sizes(source: Source) -> list[int]:
    """Bytes of the best plans as ONNX, the smallest first."""
    return [plan.bytes or 0 for plan in front(source, options("onnx")).plans]


@pytest.fixture
def onnx_size(onnx_sizes: list[int]) -> int:
    """Bytes of a plan in the middle."""
    return onnx_sizes[len(onnx_sizes) // 2]


@pytest.fixture(scope="module")
def fronts(source: Source, target: str) -> list[Any]:
    found = front(source, options(target))
    return list(found.plans)


@pytest.fixture(scope="module")
def middle(
    source: Source, target: str, fronts: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle under a size in the middle, which no test may change."""
    folder = tmp_path_factory.mktemp("bundle")
    size = fronts[len(fronts) // 2].bytes
    given = options(target, budget=Budget(max_size=size), save_plan=folder / "plan.json")
    return build(source, folder / "a.qc", given)


def test_sizes_of_the_front_grow_and_damage_falls(fronts: list[Any]) -> None:
    assert [p.bytes for p in fronts] == sorted(p.bytes for p in fronts)
    assert [p.damage for p in fronts] == sorted((p.damage for p in fronts), reverse=True)
    assert len(fronts) > 5


def test_the_front_leaves_nothing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    front(source, options("onnx"))
    assert not list(tmp_path.iterdir())


def test_a_size_is_kept_and_nearly_used(middle: Bundle, fronts: list[Any]) -> None:
    limit = fronts[len(fronts) // 2].bytes
    size = middle.manifest.sizes["artifact_bytes"]

    assert 0.9 * limit < size <= limit
    assert abs(middle.manifest.plan["bytes"] - size) < 0.03 * size
    assert len(set(middle.manifest.plan["types"].values())) > 1


def test_what_is_said_of_a_plan(middle: Bundle) -> None:
    plan = middle.manifest.plan

    assert plan["measure"] == "kl"
    assert plan["measured"]["kl"] > 0
    assert {row["tensor"] for row in plan["rows"]} == set(plan["types"])
    layers = {row["name"]: row["weight"] for row in middle.manifest.layers}
    assert all(
        ("palette" in layers[n]) == ("palette" in k)
        for n, k in plan["types"].items()
        if n in layers
    )
    assert any(row["better"] for row in plan["rows"])
    sizes, damages = ([point[key] for point in plan["front"]] for key in ("bytes", "damage"))
    assert sizes == sorted(sizes)
    assert damages == sorted(damages, reverse=True)
    assert sizes[0] < plan["bytes"] < sizes[-1]
    assert "predicted KL divergence" in repr(middle)


def test_the_same_again_byte_for_byte(
    source: Source, target: str, middle: Bundle, fronts: list[Any], tmp_path: Path
) -> None:
    size = fronts[len(fronts) // 2].bytes
    again = build(source, tmp_path / "a.qc", options(target, budget=Budget(max_size=size)))

    assert again.manifest.plan == middle.manifest.plan
    assert again.manifest.files == middle.manifest.files


def test_a_saved_plan_is_built(source: Source, target: str, middle: Bundle, tmp_path: Path) -> None:
    given = options(target, plan_file=middle.path.parent / "plan.json")
    again = build(source, tmp_path / "a.qc", given)

    assert again.manifest.plan["front"] == []
    artifact = {n: f for n, f in again.manifest.files.items() if n.startswith("model.")}
    assert artifact == {n: f for n, f in middle.manifest.files.items() if n.startswith("model.")}


def test_the_smallest_that_keeps_limits_of_quality(
    source: Source, target: str, fronts: list[Any], tmp_path: Path
) -> None:
    budget = Budget(optimize="size", max_kl=0.02)
    bundle = build(source, tmp_path / "a.qc", options(target, budget=budget, max_drop=4.0))

    assert bundle.manifest.plan["measured"]["kl"] <= 0.02
    assert bundle.manifest.sizes["artifact_bytes"] < fronts[-1].bytes
    assert {gate["gate"] for gate in bundle.manifest.gates} >= {"max-kl", "max-drop"}


def test_a_gate_alone_with_size_to_improve(source: Source, tmp_path: Path) -> None:
    given = options("onnx", budget=Budget(optimize="size"), min_sqnr=20.0)
    bundle = build(source, tmp_path / "a.qc", given)

    (gate,) = (g for g in bundle.manifest.gates if g["gate"] == "min-sqnr")
    assert 20.0 <= gate["measured"] < 40.0


def test_a_size_that_was_predicted_too_small_is_corrected(
    source: Source, onnx_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions that lack 1,000 bytes: the first artifact is too large, the second is not."""
    limit = onnx_size
    measured = planning.measured_problem

    def rosy(work: Any) -> Any:
        found = measured(work)
        return replace(found, fixed=found.fixed - 1000)

    monkeypatch.setattr(planning, "measured_problem", rosy)
    bundle = build(source, tmp_path / "a.qc", options("onnx", budget=Budget(max_size=limit)))

    assert bundle.manifest.plan["builds"] in (2, 3)
    assert bundle.manifest.sizes["artifact_bytes"] <= limit


def test_damage_is_not_measured_twice(
    source: Source, onnx_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(max_size=2 * onnx_size)

    def killed(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(weight_trials, "improved", killed)
        with pytest.raises(KeyboardInterrupt):
            build(source, tmp_path / "a.qc", options("onnx", budget=budget))
    assert list(tmp_path.rglob("*.safetensors"))
    monkeypatch.setattr(WayBack, "run", killed)
    bundle = build(source, tmp_path / "a.qc", options("onnx", budget=budget, resume=True))

    assert bundle.passed
    assert [p.name for p in tmp_path.iterdir()] == ["a.qc"]


def test_pins_stay(source: Source, onnx_size: int, tmp_path: Path) -> None:
    budget = Budget(max_size=2 * onnx_size)
    pins = BlockOptions(tensor_types=(("wide", "int8"),))
    given = options("onnx", budget=budget, blocks=pins, keep_float=frozenset({"first.weight"}))
    types = build(source, tmp_path / "a.qc", given).manifest.plan["types"]

    assert types["wide.weight"] == "int8"
    assert types["first.weight"].startswith("fp")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": Budget(max_size=100)}, BudgetError, "the weights alone take at least"),
        (
            {"budget": Budget(max_size=2000), "keep_float": frozenset({"wide.weight"})},
            BudgetError,
            "no plan keeps",
        ),
        (
            {"budget": Budget(max_size=9000), "precision": "int8"},
            TargetError,
            "-p int8 gives all weights",
        ),
        (
            {"budget": Budget(max_size=9000), "blocks": BlockOptions((("last", "palette-5"),))},
            TargetError,
            "last.weight can be .*int8.*, not palette-5",
        ),
        (
            {"budget": Budget(max_size=9000), "blocks": BlockOptions((("nothing", "int8"),))},
            TargetError,
            "no weight has nothing in its name",
        ),
        ({"blocks": BlockOptions((("last", "int8"),))}, TargetError, "there is none"),
        ({"budget": Budget(optimize="size")}, TargetError, "no limit to keep"),
        ({"save_plan": Path("plan.json")}, TargetError, "no plan to save"),
    ],
)
def test_budgets_that_cannot_be(
    source: Source,
    changes: dict[str, Any],
    error: type[QCompileError],
    message: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        build(source, tmp_path / "a.qc", options("onnx", **changes))

    assert not any(tmp_path.iterdir())


def test_limits_that_contradict_each_other(
    source: Source, onnx_sizes: list[int], tmp_path: Path
) -> None:
    """A size that leaves hardly anything, and predictions that must stay as they are."""
    budget = Budget(max_size=onnx_sizes[0] + 10, max_kl=1e-6)
    with pytest.raises(BudgetError, match=r"bits a weight\), misses --max-kl 1e-06: about"):
        build(source, tmp_path / "a.qc", options("onnx", budget=budget))

    assert issubclass(BudgetError, GateError)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        (float("nan"), "must return finite numbers; metric is nan"),
        (None, "fails: ZeroDivisionError"),
    ],
)
def test_an_evaluate_that_gives_nothing(
    source: Source, figure: float | None, message: str, tmp_path: Path
) -> None:
    def evaluate(predict: Any) -> float:
        return 1 / 0 if figure is None else figure

    given = options("onnx", budget=Budget(optimize="size"), max_drop=1.0)
    with pytest.raises(ModelError, match=message):
        build(replace(source, evaluate=evaluate), tmp_path / "a.qc", given)

    assert not any(tmp_path.iterdir())


def test_no_calibration_data(source: Source, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="needs calibration data"):
        build(source, tmp_path / "a.qc", Options(target="onnx", budget=Budget(max_size=9000)))


def test_a_plan_of_another_model(source: Source, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"schema": 1, "types": {"other": "int8"}}))
    with pytest.raises(TargetError, match=r"is no plan of this model: .*other"):
        build(source, tmp_path / "a.qc", options("onnx", plan_file=file))


def test_numbers_are_judged_by_their_error(tmp_path: Path) -> None:
    """Without classes: predicted and measured are squared errors over power."""
    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=256)}}
    made = from_module(Network().eval(), {"image": images(2, 0)}, dynamic_shapes=shapes, name="net")
    bundle = build(made, tmp_path / "a.qc", options("onnx", budget=Budget(target_bpw=12.0)))
    plan = bundle.manifest.plan

    assert plan["measure"] == "error"
    assert plan["measured"]["error"] == pytest.approx(plan["damage"], rel=1.0)
    assert plan["bits_per_weight"] <= 12.0
    with pytest.raises(TargetError, match="a distance of class probabilities"):
        build(_twice(), tmp_path / "b.qc", options("onnx", budget=Budget(max_kl=0.1)))


def _twice() -> Source:
    class Twice(Network):
        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
            found = super().forward(image)
            return found, found * 2

    shapes = {"image": {0: torch.export.Dim("batch", min=1, max=256)}}
    return from_module(Twice().eval(), {"image": images(2, 0)}, dynamic_shapes=shapes, name="net")


def test_another_limit_finds_what_was_tried(
    source: Source, middle: Bundle, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = StageCache(tmp_path / "cache")
    size = middle.manifest.sizes["artifact_bytes"]
    given = options(target, budget=Budget(max_size=size + size // 8))
    build(source, tmp_path / "larger.qc", given, stages=cache)
    cache.hits.clear()
    monkeypatch.setattr(weight_damages, "WayBack", None)  # nothing is measured again
    given = options(target, budget=Budget(max_size=size))
    shared = build(source, tmp_path / "shared.qc", given, stages=cache)
    assert cache.hits.count("trials") == 4
    monkeypatch.undo()
    alone = build(source, tmp_path / "alone.qc", given)
    names = [f.relative_to(alone.path) for f in alone.path.rglob("*") if f.is_file()]
    for name in names:
        assert (shared.path / name).read_bytes() == (alone.path / name).read_bytes()
