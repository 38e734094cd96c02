"""Limits of memory and time: kept by the finished file, in llama.cpp on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import build, running
from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.runtime import Session
from qcompile.targets.gguf.emitter import GgufEmitter
from qcompile.targets.plans import TokenTimes

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.usefixtures("own_cache")
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 40
GENEROUS = 1 << 30


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(TEXT)
    return file


def options(text: Path, budget: Budget, target: str = "gguf", **changes: Any) -> Options:
    given = {"format": "gguf", "calibrate": text, "seq_len": 32, "num_samples": 20}
    return Options(target=target, budget=budget, **given, **changes)


def gate(bundle: Any, name: str) -> dict[str, Any]:
    return next(row for row in bundle.manifest.gates if row["gate"] == name)


def test_memory_and_time_are_measured_with_the_finished_file(
    tiny_source: Source, text: Path, tmp_path: Path
) -> None:
    from qcompile.targets.options import BlockOptions

    budget = Budget(
        max_ram=GENEROUS, context=48, max_latency=1000.0, max_kl=10.0, optimize="latency"
    )
    given = options(text, budget, blocks=BlockOptions(kv_type="q8_0"))
    bundle = build(tiny_source, tmp_path / "a.qc", given)

    plan, memory, time = bundle.manifest.plan, gate(bundle, "max-ram"), gate(bundle, "max-latency")
    assert memory["passed"]
    assert memory["measured"] <= plan["ram"] < GENEROUS
    assert "with 48 tokens" in memory["message"]
    assert time["passed"]
    assert 0 < time["measured"] < 1000
    assert Session(bundle.path).manifest.engine["options"]["kv_type"] == "q8_0"


def test_too_slow_a_plan_is_not_built(
    tiny_source: Source, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each plan takes longer than predicted: a few are measured, and nothing is rounded."""
    taken = iter([0.9, 0.8, 0.7])

    def times(
        self: Any, checkpoint: Any, scheme: Any, blocks: Any, choices: Any, device: Any
    ) -> TokenTimes:
        of = {
            c.name: {f.name: 1e-7 * b for f, b in zip(c.formats, c.bytes, strict=True)}
            for c in choices
        }
        return TokenTimes(of, 0.0, modelled=False)

    monkeypatch.setattr(running, "_measured", {})
    monkeypatch.setattr(GgufEmitter, "token_times", times)
    monkeypatch.setattr(GgufEmitter, "planned_milliseconds", lambda *_: next(taken))
    with pytest.raises(BudgetError, match=r"max-latency|the least time about"):
        build(tiny_source, tmp_path / "a.qc", options(text, Budget(max_latency=0.5)))

    assert not list(tmp_path.iterdir())


def test_times_of_another_device_are_modelled(
    tiny_source: Source, text: Path, tmp_path: Path
) -> None:
    budget = Budget(max_latency=0.01)
    bundle = build(tiny_source, tmp_path / "a.qc", options(text, budget, "apple-m2"))
    time = gate(bundle, "max-latency")

    assert time["measured"] == pytest.approx(bundle.manifest.plan["milliseconds"])
    assert "bytes over bandwidth" in time["message"]
    with pytest.raises(BudgetError, match="the least time about"):
        build(tiny_source, tmp_path / "b.qc", options(text, Budget(max_latency=1e-6), "apple-m2"))
    with pytest.raises(TargetError, match="neither measured here nor modelled"):
        build(tiny_source, tmp_path / "b.qc", options(text, budget, "x86-avx2"))
