"""Builds under a budget: every limit is kept by the file itself, in its own engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build, dry_run, planning
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.front import front
from qcompile.compiler.driver.problem import Damages
from qcompile.compiler.frontend.load import Source, load
from qcompile.compiler.ir.errors import (
    BudgetError,
    CalibrationError,
    GateError,
    OutputError,
    QCompileError,
    TargetError,
)
from qcompile.passes.calibration.way_back import WayBack
from qcompile.targets.gguf.choices import nearest_mix
from qcompile.targets.plans import TensorChoices

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("own_cache")
gguf = pytest.importorskip("gguf")
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


def options(text: Path | None, **changes: Any) -> Options:
    return Options(target="gguf", calibrate=text, seq_len=32, num_samples=20, **changes)


@pytest.fixture(scope="module")
def sizes(tiny_source: Source, text: Path) -> list[int]:
    """The sizes of the best plans, the smallest first."""
    found = front(tiny_source, options(text))
    damages = [plan.damage for plan in found.plans]
    assert damages == sorted(damages, reverse=True)
    return [plan.bytes or 0 for plan in found.plans]


@pytest.fixture(scope="module")
def small(
    tiny_source: Source, text: Path, sizes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """A bundle under a size in the middle, which no test may change."""
    folder = tmp_path_factory.mktemp("bundle")
    budget, plan = Budget(max_size=sizes[len(sizes) // 2]), folder / "plan.json"
    return build(tiny_source, folder / "a.qc", options(text, budget=budget, save_plan=plan))


def types_in_file(bundle: Bundle) -> dict[str, str]:
    tensors = gguf.GGUFReader(bundle.path / "model.gguf").tensors
    return {t.name: t.tensor_type.name for t in tensors}


def test_a_size_is_kept_and_used(small: Bundle, sizes: list[int]) -> None:
    limit, plan = sizes[len(sizes) // 2], small.manifest.plan
    size = (small.path / "model.gguf").stat().st_size

    assert 0.9 * limit < size <= limit
    assert plan["bytes"] == size
    assert plan["types"].items() <= types_in_file(small).items()
    assert len(set(plan["types"].values())) > 1
    assert {row["tensor"] for row in plan["rows"]} <= plan["types"].keys()


def test_what_was_predicted_and_what_was_measured(small: Bundle) -> None:
    plan = small.manifest.plan

    assert plan["damage"] == pytest.approx(sum(row["damage"] for row in plan["rows"]), rel=1e-4)
    assert 0.2 < plan["measured"]["kl"] / plan["damage"] < 5
    assert plan["measured"]["tokens"] > 0
    assert "measured" in dict(small.summary())["plan"]


def test_the_same_again(
    tiny_source: Source, text: Path, small: Bundle, sizes: list[int], tmp_path: Path
) -> None:
    budget = Budget(max_size=sizes[len(sizes) // 2])
    again = build(tiny_source, tmp_path / "b.qc", options(text, budget=budget))

    assert (again.path / "model.gguf").read_bytes() == (small.path / "model.gguf").read_bytes()
    assert again.manifest.plan == small.manifest.plan


def test_a_saved_plan_is_built(
    tiny_source: Source, text: Path, small: Bundle, tmp_path: Path
) -> None:
    given = options(text, plan_file=small.path.parent / "plan.json")
    planned = dry_run(tiny_source, given)
    again = build(tiny_source, tmp_path / "b.qc", given)

    assert planned.artifact_bytes == small.manifest.plan["bytes"]
    assert (again.path / "model.gguf").read_bytes() == (small.path / "model.gguf").read_bytes()


def test_bits_per_weight(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    bundle = build(tiny_source, tmp_path / "a.qc", options(text, budget=Budget(target_bpw=6.0)))
    tensors = gguf.GGUFReader(bundle.path / "model.gguf").tensors
    bits = 8 * sum(t.n_bytes for t in tensors) / sum(int(t.n_elements) for t in tensors)

    assert 5.5 < bits <= 6.01
    assert {gate["gate"] for gate in bundle.manifest.gates} >= {"target-bpw"}


def test_a_plan_that_is_worse_than_predicted_is_built_anew(
    tiny_source: Source, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predictions of a tenth: the first plan is too coarse, what it measures corrects them."""
    measured = planning.measure_damage

    def rosy(work: Any, choices: Sequence[TensorChoices], max_bytes: int) -> Damages:
        found = measured(work, choices, max_bytes)
        return {n: {k: d / 10 for k, d in row.items()} for n, row in found.items()}

    monkeypatch.setattr(planning, "measure_damage", rosy)
    budget = Budget(max_kl=0.02)
    bundle = build(tiny_source, tmp_path / "a.qc", options(text, budget=budget))

    plan = bundle.manifest.plan
    assert plan["builds"] > 1
    assert bundle.manifest.precision == nearest_mix(plan["bits_per_weight"])
    assert plan["measured"]["kl"] <= 0.02
    assert plan["types"].items() <= types_in_file(bundle).items()


def test_a_limit_that_no_round_keeps_fails_the_gate(
    tiny_source: Source, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "ROUNDS", 1)
    monkeypatch.setattr(planning, "measure_damage", lambda work, choices, _: {
        source: dict.fromkeys((f.name for f in c.formats), 0.0) for c in choices for source in c.sources
    })  # fmt: skip
    with pytest.raises(GateError, match=r"max-kl: .* nats a token of KL divergence, the limit is"):
        build(tiny_source, tmp_path / "a.qc", options(text, budget=Budget(max_kl=1e-6)))

    assert (tmp_path / "a.qc.rejected").is_dir()


def test_damage_is_measured_once_for_all_limits(
    tiny_source: Source, text: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache's file is named by model and data: another limit finds it, another text does not."""
    monkeypatch.setattr(WayBack, "run", _killed)

    found = front(tiny_source, options(text, max_host_ram=1 << 31))
    assert [plan.bytes for plan in found.plans] == sizes
    with pytest.raises(KeyboardInterrupt):
        front(tiny_source, replace(options(text), num_samples=19))


def test_formats_that_were_not_measured_are(
    tiny_source: Source,
    text: Path,
    sizes: list[int],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A format that the cache does not know of one weight: that weight alone is tried again."""
    (file,) = own_cache.rglob("damage/*.json")
    whole = json.loads(file.read_text())
    name = sorted(whole)[0]
    file.write_text(json.dumps({**whole, name: {"Q8_0": whole[name]["Q8_0"]}}))
    tried: list[frozenset[str]] = []
    run = WayBack.run

    def watched(self: WayBack, visitor: Any) -> None:
        tried.append(visitor.weights)
        run(self, visitor)

    monkeypatch.setattr(WayBack, "run", watched)
    front(tiny_source, options(text))

    assert tried == [frozenset({name})]
    assert json.loads(file.read_text()) == whole


def test_a_cache_that_cannot_be_written(
    tiny_source: Source, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.raises(OutputError, match="cannot be written"):
        front(tiny_source, options(text))


def _killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_mixture_of_experts(checkpoints: ModuleType, text: Path, tmp_path: Path) -> None:
    """All experts of a matrix are one tensor in the file, with one format."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    source = load(str(checkpoints.random_checkpoint(tmp_path / "mixtral", "mixtral", **sizes)))
    bundle = build(source, tmp_path / "a.qc", options(text, budget=Budget(target_bpw=6.5)))
    rows = {row["tensor"]: row for row in bundle.manifest.plan["rows"]}

    assert bundle.passed
    assert bundle.manifest.plan["types"].items() <= types_in_file(bundle).items()
    assert rows["blk.0.ffn_down_exps.weight"]["damage"] > 0
    assert 0.2 < bundle.manifest.plan["measured"]["kl"] / bundle.manifest.plan["damage"] < 5


def test_pinned_tensors_stay(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    from qcompile.targets.options import BlockOptions

    pinned = BlockOptions(tensor_types=((r"attn_v\.weight", "q8_0"),))
    given = options(text, budget=Budget(target_bpw=6.0), blocks=pinned)
    bundle = build(tiny_source, tmp_path / "a.qc", given)

    kinds = {n: t for n, t in types_in_file(bundle).items() if "attn_v.weight" in n}
    assert set(kinds.values()) == {"Q8_0"}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": Budget(max_size=1000)}, BudgetError, "the smallest file is [0-9,]+ bytes"),
        ({"budget": Budget(max_kl=1e-9)}, BudgetError, "the least KL divergence about"),
        ({"budget": Budget(max_kl=-1.0)}, TargetError, "is not above 0"),
        ({"budget": Budget(max_ram=1000)}, BudgetError, "bytes of memory are needed besides the file"),
        ({"budget": Budget(max_ram=10**9, context=65)}, TargetError, "--context 65 is not between 1 and 64"),
        ({"budget": Budget(context=64)}, TargetError, "says what --max-ram has room for, and there is none"),
        ({"budget": Budget(max_size=10**9), "calibrate": None}, CalibrationError, "needs calibration data"),
        ({"save_plan": Path("plan.json")}, TargetError, "has no plan to save"),
        ({"save_plan": Path("no/folder/plan.json")}, OutputError, "does not exist"),
        ({"plan_file": Path("missing.json")}, TargetError, "is no plan"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be(
    tiny_source: Source,
    text: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    error: type[QCompileError],
    message: str,
) -> None:
    given = {"calibrate": text, **changes}
    with pytest.raises(error, match=message):
        build(
            tiny_source,
            tmp_path / "a.qc",
            Options(target="gguf", seq_len=32, num_samples=20, **given),
        )
    assert not list(tmp_path.iterdir())


def test_a_plan_of_another_model(tiny_source: Source, text: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"schema": 1, "types": {"blk.99.attn_q.weight": "Q4_K"}}))

    with pytest.raises(
        TargetError, match=r"1 tensors that the model has not .* have no type in it"
    ):
        build(tiny_source, tmp_path / "a.qc", options(text, plan_file=file))


def test_a_plan_whose_types_need_data(tiny_source: Source, small: Bundle, tmp_path: Path) -> None:
    types = dict(small.manifest.plan["types"])
    needing = next(name for name, kind in types.items() if "attn" in name)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps({"schema": 1, "types": {**types, needing: "IQ2_XXS"}}))

    with pytest.raises(CalibrationError, match="needs calibration data for 1 tensors"):
        build(tiny_source, tmp_path / "a.qc", options(None, plan_file=file))


def test_what_needs_a_build_is_no_dry_run(tiny_source: Source, text: Path) -> None:
    with pytest.raises(TargetError, match="leave out --dry-run"):
        dry_run(tiny_source, options(text, budget=Budget(target_bpw=6.0)))
    with pytest.raises(TargetError, match="leave out the limits"):
        front(tiny_source, options(text, budget=Budget(target_bpw=6.0)))
    with pytest.raises(CalibrationError, match="--pareto needs calibration data"):
        front(tiny_source, options(None))
