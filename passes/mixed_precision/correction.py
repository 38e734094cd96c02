"""Damage in company: what another format of one weight does while all others are as a plan has them.

Predictions are for each weight alone. Where errors are large, they are not small enough for a second-order
formula, and they meet: what one weight's error does depends on the others. So each weight in turn gets the
formats next to its own, and the whole is measured; what that adds or spares is its damage from then on
(as Shapley values of layers measure it, but only around one plan; IMPQ, https://arxiv.org/abs/2509.15455).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from qcompile.passes.calibration.parallel import each
from qcompile.passes.mixed_precision.allocation import Choice, Item

Measure = Callable[[Mapping[str, str]], float]
Damages = dict[str, dict[str, float]]
NEXT = 2
"""Formats on each side of a weight's own that are measured, of those that no other one beats."""


def corrected(
    items: Sequence[Item], chosen: Mapping[str, str], cost: str, damage: str, measure: Measure
) -> Damages:
    """Return the damage of each item's choices around a plan, by the names of item and choice.

    Args:
        items: With predicted damages.
        chosen: The plan: a choice's name by the item's.
        cost: What choices are sorted by, bytes.
        damage: Name of the predictions.
        measure: Of a plan, the damage of the whole.
    """
    whole = measure(chosen)
    predicted = {item.name: _of(item, chosen[item.name]).costs[damage] for item in items}
    total = sum(predicted.values())
    scale = whole / total if total > 0 else 1.0
    tried = [
        (item, choice) for item in items for choice in _near(item, chosen[item.name], cost, damage)
    ]
    measured = each(lambda pair: measure({**chosen, pair[0].name: pair[1].name}), tried)
    found = {i.name: {c.name: scale * c.costs[damage] for c in i.choices} for i in items}
    for (item, choice), value in zip(tried, measured, strict=True):
        own = scale * predicted[item.name]
        found[item.name][choice.name] = max(0.0, own + value - whole)
    return found


def _of(item: Item, name: str) -> Choice:
    return next(choice for choice in item.choices if choice.name == name)


def _near(item: Item, name: str, cost: str, damage: str) -> list[Choice]:
    """Return the choices next to one, by cost, that none beats in both cost and damage."""
    own = _of(item, name)
    useful: list[Choice] = []
    for choice in sorted(item.choices, key=lambda c: (c.costs[cost], c.costs[damage], c.name)):
        if choice is own or all(choice.costs[damage] < c.costs[damage] for c in useful):
            useful.append(choice)
    place = useful.index(own)
    return [*useful[max(0, place - NEXT) : place], *useful[place + 1 : place + 1 + NEXT]]
