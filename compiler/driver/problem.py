"""``Problem``: what plans are made of, and the best of them within a ``Budget``.

Built from the damage that each format would do (``passes/mixed_precision``) and the bytes that it takes;
``allocate`` finds the best, and what a built artifact measures corrects the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.driver.nearest import Limit, needed, tightest, together
from qcompile.compiler.driver.plan import BYTES, DAMAGE, TIME, Plan, row
from qcompile.compiler.ir.errors import BudgetError
from qcompile.passes.mixed_precision.allocation import (
    Allocation,
    Choice,
    Item,
    allocate,
    allocations,
)
from qcompile.targets.plans import TensorChoices, TokenTimes

FRONT_POINTS = 16
"""Plans of a front."""
_MILLION = 1e6
Damages = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Problem:
    """What plans are made of.

    Args:
        choices: Of each tensor.
        damages: Of each weight and format; none before they are measured.
        fixed: Bytes of the file that no choice changes.
        elements: Of all tensors.
        fixed_bits: Of tensors that no choice changes.
        measure: What damage is; see ``Plan``.
        beside: Bytes of memory that the engine holds besides the file, if they count.
        times: What choices add to the time of a token, if it counts.
    """

    choices: Sequence[TensorChoices]
    damages: Damages
    fixed: int
    elements: int
    fixed_bits: int
    measure: str = "kl"
    beside: int | None = None
    times: TokenTimes | None = None

    def items(self) -> list[Item]:
        """Return the knapsack's items; no choice does damage where none is known yet."""
        return [Item(c.name, tuple(self._choices(c))) for c in self.choices]

    def _choices(self, group: TensorChoices) -> list[Choice]:
        found = []
        for format, size in zip(group.formats, group.bytes, strict=True):
            known = [self.damages[source] for source in group.sources if self.damages]
            costs = {BYTES: float(size), DAMAGE: sum(damages[format.name] for damages in known)}
            if self.times is not None:
                costs[TIME] = self.times.of[group.name][format.name]
            found.append(Choice(format.name, costs))
        return found

    def check(self, budget: Budget) -> None:
        """Refuse limits that nothing keeps, however much damage it does.

        Raises:
            BudgetError: Says what would be possible.
        """
        self.solve(replace(budget, max_kl=None, optimize="size"))

    def solve(self, budget: Budget, scale: float = 1.0, cap: float | None = None) -> Plan:
        """Return the best plan within a budget.

        Args:
            budget: The limits.
            scale: By what predictions are multiplied: what a built plan measured over what it predicted.
            cap: Damage at most, as predicted.

        Raises:
            BudgetError: There is none; says what would be possible.
        """
        return self.several(budget, 1, scale, cap)[0]

    def several(
        self, budget: Budget, count: int, scale: float = 1.0, cap: float | None = None
    ) -> list[Plan]:
        """Return up to ``count`` plans, the best first; as ``solve``."""
        items, limits = self.items(), self.limits(budget, scale)
        if cap is not None:
            limits.append(Limit("what --min-sqnr, --max-drop and --max-kl leave", cap, DAMAGE))
        minimize = {"quality": DAMAGE, "size": BYTES, "latency": TIME}[budget.goal]
        try:
            found = allocations(items, minimize, tightest(limits), count)
            return [self.plan(one) for one in found]
        except BudgetError as error:
            raise self._refusal(items, limits, scale) from error

    def plan(self, found: Allocation) -> Plan:
        """Return an allocation as a plan."""
        types = {
            tensor: found.chosen[group.name].name
            for group in self.choices
            for tensor in group.tensors
        }
        rows = tuple(row(item, found.chosen[item.name]) for item in self.items())
        size = int(found.totals[BYTES])
        bits = (8 * size + self.fixed_bits) / self.elements
        return Plan(
            types,
            rows,
            size + self.fixed,
            math.floor(bits * _MILLION) / _MILLION,
            found.totals[DAMAGE],
            self.measure,
            None if self.beside is None else size + self.fixed + self.beside,
            None if self.times is None else found.totals[TIME] + self.times.rest,
        )

    @property
    def front_cost(self) -> str:
        """What grows along the front: the time, where it counts."""
        return BYTES if self.times is None else TIME

    def front(self, points: int = FRONT_POINTS) -> list[Plan]:
        """Return so many plans, the cheapest first: the least damage at each sum of a cost."""
        items, cost = self.items(), self.front_cost
        least, most = (sum(f(c.costs[cost] for c in i.choices) for i in items) for f in (min, max))
        limits = [least * (most / least) ** (k / (points - 1)) for k in range(points)]
        if cost == BYTES:
            limits = [round(limit) for limit in limits]
        plans = [self.plan(allocate(items, DAMAGE, {cost: limit})) for limit in limits]
        return list({(plan.bytes, plan.damage): plan for plan in plans}.values())

    def milliseconds(self, types: Mapping[str, str]) -> float:
        """Return the predicted time of a token, where times are known; types by the tensor's name."""
        assert self.times is not None
        return self.times.rest + sum(
            self.times.of[choice.name][types[choice.name]] for choice in self.choices
        )

    def limits(self, budget: Budget, scale: float = 1.0) -> list[Limit]:
        """Return the limits of a budget as sums of costs."""
        found = []
        if budget.max_size is not None:
            found.append(Limit("--max-size", budget.max_size, BYTES, offset=self.fixed, whole=True))
        if budget.target_bpw is not None:
            bits, fixed = 8 / self.elements, self.fixed_bits / self.elements
            found.append(Limit("--target-bpw", budget.target_bpw, BYTES, bits, fixed))
        if budget.max_ram is not None:
            whole = self.fixed + (self.beside or 0)
            found.append(Limit("--max-ram", budget.max_ram, BYTES, offset=whole, whole=True))
        if budget.max_latency is not None:
            rest = 0.0 if self.times is None else self.times.rest
            found.append(Limit("--max-latency", budget.max_latency, TIME, offset=rest))
        if budget.max_kl is not None:
            found.append(Limit("--max-kl", budget.max_kl, DAMAGE, scale))
        return found

    def _refusal(self, items: list[Item], limits: Sequence[Limit], scale: float) -> BudgetError:
        """Return an error that says what comes nearest to each limit."""
        smallest = self.plan(allocate(items, BYTES, {}))
        file = f"{smallest.bytes:,} bytes ({smallest.bits_per_weight:g} bits a weight)"
        said = [f"the smallest file is {file}"]
        costs = {limit.cost for limit in limits}
        if DAMAGE in costs:
            best = self.plan(allocate(items, DAMAGE, {}))
            least = (best.damage or 0.0) * scale
            said.append(f"the least KL divergence about {least:.3g} at {best.bytes:,} bytes")
        if TIME in costs:
            fastest = self.plan(allocate(items, TIME, {}))
            said.append(f"the least time about {fastest.milliseconds:.3g} ms")
        if self.beside is not None:
            said.append(f"{self.beside:,} bytes of memory are needed besides the file")
        needs = needed(items, limits)
        said.append(together(needs))
        nearest = [need.as_json(self._json) for need in needs]
        return BudgetError(f"no plan keeps these limits; {'; '.join(said)}", nearest=nearest)

    def _json(self, found: Allocation) -> dict[str, Any]:
        data = self.plan(found).as_json()
        return {
            key: data[key]
            for key in ("bytes", "bits_per_weight", "damage", "ram", "milliseconds", "types")
        }
