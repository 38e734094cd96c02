"""Predicted damage against the KL divergence that is measured, of single weights and of every plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from qcompile.compiler.driver.weight_trials import SEVERAL
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.palette import PaletteSpec
from qcompile.compiler.ir.quant import FloatSpec, WeightFormat
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.way_back import WayBack
from qcompile.passes.mixed_precision.allocation import Choice, Item, allocate, allocations
from qcompile.passes.mixed_precision.correction import corrected
from qcompile.passes.mixed_precision.cotangents import relative_error, weighed_labels
from qcompile.passes.mixed_precision.trial_store import TrialStore
from qcompile.passes.mixed_precision.weight_damage import Trials, WeightDamage
from qcompile.targets.weight_choices import weight_readers

Plans = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def every(tested: Any) -> Plans:
    """The KL divergence of all 4096 plans."""
    found = {tuple(plan.values()): kl for plan, kl in tested.every_kl()}
    assert len(found) == len(tested.formats) ** 6
    return found


def items(tested: Any, damages: Mapping[str, Mapping[str, float]]) -> list[Item]:
    return [
        Item(
            name,
            tuple(
                Choice(
                    f.name, {"bytes": tested.bytes(name, f.name), "damage": damages[name][f.name]}
                )
                for f in tested.formats
            ),
        )
        for name in tested.trials
    ]


def test_predictions_rank_plans_as_measurements_do(tested: Any, every: Plans) -> None:
    plans = list(every)
    drawn = np.random.default_rng(0).choice(len(plans), 50, replace=False)
    predicted = [
        sum(t.damage[kind] for t, kind in zip(tested.trials.values(), plans[i], strict=True))
        for i in drawn
    ]
    measured = [every[plans[i]] for i in drawn]

    assert spearmanr(predicted, measured).statistic > 0.9


@pytest.mark.parametrize("share", [0.15, 0.3, 0.5, 0.7, 0.85])
def test_the_plan_is_the_best_of_all_or_within_a_fiftieth_of_it(
    tested: Any, every: Plans, share: float
) -> None:
    """An exhaustive search of 4 formats in 6 weights, at several sizes."""
    names = list(tested.trials)
    sizes = {p: sum(tested.bytes(n, k) for n, k in zip(names, p, strict=True)) for p in every}
    least, most = min(sizes.values()), max(sizes.values())
    limit = least + share * (most - least)
    first = items(tested, {name: t.damage for name, t in tested.trials.items()})
    plan = allocate(first, "damage", {"bytes": limit}).chosen
    chosen = {name: plan[name].name for name in names}

    def measure(kinds: Mapping[str, str]) -> float:
        return every[tuple(kinds[n] for n in names)]

    again = items(tested, corrected(first, chosen, "bytes", "damage", measure))
    better = [a.chosen for a in allocations(again, "damage", {"bytes": limit}, SEVERAL)]
    plans = [chosen, *({name: plan[name].name for name in names} for plan in better)]
    found = min(measure(plan) for plan in plans)

    assert found <= 1.02 * min(kl for p, kl in every.items() if sizes[p] <= limit)


def test_the_same_again(tested: Any) -> None:
    other = type(tested).make()

    for name, trials in tested.trials.items():
        assert trials.damage == other.trials[name].damage
        for kind, tried in trials.tried.items():
            assert torch.equal(tried.weight, other.trials[name].tried[kind].weight)


def test_what_is_kept_comes_back(tested: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = TrialStore(tmp_path_factory.mktemp("trials") / "a")
    kinds = [f.name for f in tested.formats]
    for name, trials in tested.trials.items():
        assert store.damage(name, kinds) is None
        store.put(name, trials)
        assert store.damage(name, kinds) == trials.damage
        assert store.damage(name, kinds[1:]) is None
    plan = dict.fromkeys(tested.trials, "palette-2")
    batch = tested.samples.batches[0]
    kl = {tuple(p.values()): v for p, v in tested.every_kl() if set(p.values()) == {"palette-2"}}

    (exact,), (found,) = (
        list(g.run(batch).values()) for g in (tested.graph, store.graph(tested.graph, plan))
    )
    logs = exact.log_softmax(-1)
    measured = float((logs.exp() * (logs - found.log_softmax(-1))).sum(-1).mean())
    assert measured == pytest.approx(next(iter(kl.values())), rel=0.5)  # a quarter of the samples


class Tagger(nn.Module):
    """A table, a recurrent layer, and a projection to numbers: no classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(64, 32)
        self.memory = nn.LSTM(32, 32)
        self.project = nn.Linear(32, 3)

    def forward(self, ids: Tensor) -> Tensor:
        steps = self.table(ids).transpose(0, 1)
        return self.project(self.memory(steps)[0]).transpose(0, 1)


def test_the_error_of_numbers_is_what_replacing_a_weight_does() -> None:
    """Small errors of a table, of a recurrent layer in time-major order, and of a linear layer."""
    seeded = torch.Generator().manual_seed(3)
    batches = [{"ids": torch.randint(0, 64, (1, 12), generator=seeded)} for _ in range(600)]
    graph = trace(Tagger(), batches[0]["ids"])
    (name,) = graph.inputs
    samples = Samples([{name: b["ids"]} for b in batches], len(batches), "test")
    readers = weight_readers(graph)
    assert len(readers) == 4
    found: dict[str, Trials] = {}
    half = [WeightFormat("fp16", FloatSpec(16)), WeightFormat("palette-4", PaletteSpec(4))]
    formats = dict.fromkeys(readers, half)
    ones = [1] * len(batches)
    visitor = WeightDamage(graph, formats, readers, ones, "nearest", found.__setitem__)
    WayBack(graph, samples, relative_error).run(visitor)

    for weight in readers:
        twin = graph.copy()
        twin.weights[weight] = found[weight].tried["palette-4"].weight
        errors = power = 0.0
        for batch in samples.batches[:100]:
            (exact,), (other,) = (list(g.run(batch).values()) for g in (graph, twin))
            errors += float((exact - other).square().sum())
            power += float(exact.square().sum())
        assert found[weight].damage["palette-4"] == pytest.approx(errors / power, rel=0.35)
        assert found[weight].damage["fp16"] < 1e-4 * found[weight].damage["palette-4"] + 1e-9


def test_weighed_labels_have_the_fisher_information() -> None:
    logits = torch.tensor([[4.0, 0.0, -1.0, 1.0]]).expand(40_000, 4)
    z = weighed_labels(logits, 0).double()
    p = logits[0].double().softmax(-1)

    fisher = torch.diag(p) - torch.outer(p, p)
    torch.testing.assert_close(z.T @ z / len(z), fisher, atol=2e-3, rtol=0.1)
