"""The search for float layers, with trials that are known: what is evaluated, and what is found."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from qcompile.compiler.driver.float_search import FloatLayers, smallest
from qcompile.compiler.driver.weight_trials import QualityLimit
from qcompile.passes.mixed_precision.float_layers import FloatProblem, Layers

COSTS = {"a": 8.0, "b": 7.0, "c": 6.0, "d": 5.0, "e": 4.0, "f": 3.0}


class Trials:
    """Stands for the trials of a network: a pick's own name is its graph.

    Args:
        needed: Layers that must be float for the limit to hold.
        plain: Those whose weights must be float as well.
    """

    def __init__(self, needed: Collection[str], plain: Collection[str] = ()) -> None:
        self.needed, self.plain = frozenset(needed), frozenset(plain)
        self.evaluated: list[Any] = []

    def trial(self, layers: Layers, samples: Any, coded: Layers) -> Any:
        return layers, coded

    def distance(self, graph: Any) -> float:
        layers, coded = graph
        return sum(c for n, c in COSTS.items() if n not in layers) + 0.001 * len(coded)

    def drop(self, graph: Any) -> float:
        self.evaluated.append(graph)
        layers, coded = graph
        missing = len(self.needed - layers) + len(self.plain & coded)
        return missing + (0.25 if coded else 0.0)


def search(trials: Trials, *, sizes: Collection[str] = ()) -> FloatLayers:
    limit = QualityLimit("max-drop", 0.5, trials.drop)
    problem = FloatProblem(COSTS, {})
    given: Any = (trials, None, problem, [limit], {})
    return FloatLayers(*given, trials.distance, dict.fromkeys(sizes, 1))


@pytest.mark.parametrize("needed", ["a", "ab", "abc", "abcd", "abcde"])
def test_the_layers_that_are_needed_are_found(needed: str) -> None:
    trials = Trials(needed)

    assert smallest(search(trials)) == (frozenset(needed), frozenset())
    assert len(trials.evaluated) == len(set(trials.evaluated))


def test_far_trials_are_not_evaluated() -> None:
    """What is farther from the original's predictions than a pick that misses is taken to miss."""
    trials = Trials("abcd")
    found = search(trials)
    smallest(found)

    missed = [found.tried[pick] for pick in trials.evaluated if not found.tried[pick].holds]
    skipped = [t for pick, t in found.tried.items() if pick not in trials.evaluated]
    assert skipped
    for trial in skipped:
        assert not trial.holds
        assert trial.distance >= min(t.distance for t in missed)
    assert found.trials == len(found.tried) == len(trials.evaluated) + len(skipped)


def test_no_set_is_found_where_all_must_be_float() -> None:
    assert smallest(search(Trials("abcdef"))) is None


@pytest.mark.parametrize("plain", ["", "a", "ab", "abc"])
def test_as_many_weights_as_hold_are_in_codes(plain: str) -> None:
    """Those that would do most are float first, so what must be float is found exactly."""
    trials = Trials("abcd", plain)
    found = smallest(search(trials, sizes=COSTS))

    assert found == (frozenset("abcd"), frozenset("abcd") - frozenset(plain))


def test_a_pick_that_its_artifact_missed_is_not_taken_again() -> None:
    found, both = search(Trials("ab"), sizes=COSTS), frozenset("ab")
    found.kept, found.coded = smallest(found) or (frozenset(), frozenset())
    assert (found.kept, found.coded) == (both, both)
    found.tighten({"max-drop": 0.75})  # 0.5 more than the trial had

    assert smallest(found, len(found.kept)) == (both, frozenset())
