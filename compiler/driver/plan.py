"""``Plan``: a format for each tensor of a language model, and why.

Built from the damage that each format would do (``passes/mixed_precision``) and the bytes that it takes;
``allocate`` finds the best within a ``Budget``. It can be saved, read again, and corrected by what a built
artifact measures.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qcompile.compiler.driver.budget import Budget
from qcompile.compiler.ir.errors import BudgetError, TargetError
from qcompile.passes.mixed_precision.allocation import Allocation, Choice, Item, allocate
from qcompile.targets.options import BlockOptions
from qcompile.targets.plans import TensorChoices

SCHEMA = 1
BYTES, DAMAGE = "bytes", "damage"
Damages = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Row:
    """What a tensor was given.

    Args:
        tensor: Its name in the file; of tensors that are stored alike, the first.
        format: Of its weights.
        bytes: That it takes.
        damage: Predicted KL divergence that it causes, nats per token.
        better: The next format that would do less: ``format``, ``bytes`` more, ``damage`` less.
        cheaper: The next that would take less.
    """

    tensor: str
    format: str
    bytes: int
    damage: float
    better: Mapping[str, Any] | None
    cheaper: Mapping[str, Any] | None


@dataclass(frozen=True)
class Plan:
    """A format for each tensor.

    Args:
        types: By the tensor's name in the file.
        rows: In file order; none of a plan that was read.
        bytes: Of the file.
        bits_per_weight: Of the file's tensors.
        damage: Predicted KL divergence, nats per token.
    """

    types: Mapping[str, str]
    rows: tuple[Row, ...] = ()
    bytes: int | None = None
    bits_per_weight: float | None = None
    damage: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"schema": SCHEMA, **asdict(self)}

    def save(self, file: Path) -> None:
        """Write it for ``--plan``."""
        file.write_text(
            json.dumps(self.as_json(), indent=1, sort_keys=True) + "\n", encoding="utf-8"
        )

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Read the types of a saved plan.

        Raises:
            TargetError: It is none.
        """
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            schema, types = data["schema"], dict(data["types"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TargetError(f"{file} is no plan ({error}): write one with --save-plan") from error
        if schema != SCHEMA or not all(isinstance(t, str) for t in types.values()):
            raise TargetError(
                f"{file} is a plan of schema {schema!r}, this reads {SCHEMA}: save it again"
            )
        bits = data.get("bits_per_weight")
        return cls(types, bits_per_weight=bits if isinstance(bits, int | float) else None)


def with_plan(blocks: BlockOptions, plan: Plan) -> BlockOptions:
    """Return block options that give each tensor its planned format."""
    types = tuple((f"^{re.escape(name)}$", kind) for name, kind in plan.types.items())
    return replace(blocks, tensor_types=types)


@dataclass(frozen=True)
class Problem:
    """What plans are made of.

    Args:
        choices: Of each tensor.
        damages: Of each weight and format.
        fixed: Bytes of the file that no choice changes.
        elements: Of all tensors.
        fixed_bits: Of tensors that no choice changes.
    """

    choices: Sequence[TensorChoices]
    damages: Damages
    fixed: int
    elements: int
    fixed_bits: int

    def items(self) -> list[Item]:
        """Return the knapsack's items."""
        return [Item(c.name, tuple(self._choices(c))) for c in self.choices]

    def _choices(self, group: TensorChoices) -> list[Choice]:
        found = []
        for format, size in zip(group.formats, group.bytes, strict=True):
            damage = sum(self.damages[source][format.name] for source in group.sources)
            found.append(Choice(format.name, {BYTES: float(size), DAMAGE: damage}))
        return found

    def check(self, budget: Budget) -> None:
        """Refuse a size that the smallest formats do not reach.

        Raises:
            BudgetError: Says what the smallest file is.
        """
        smallest = sum(min(c.bytes) for c in self.choices)
        limit = self._limits(budget, 1.0).get(BYTES)
        if limit is not None and smallest > limit:
            bits = (8 * smallest + self.fixed_bits) / self.elements
            raise BudgetError(
                f"no plan keeps these limits; the smallest file is {smallest + self.fixed:,} bytes "
                f"({bits:.3f} bits a weight)"
            )

    def solve(self, budget: Budget, scale: float = 1.0) -> Plan:
        """Return the best plan within a budget.

        Args:
            budget: The limits.
            scale: By what predictions are multiplied: what a built plan measured over what it predicted.

        Raises:
            BudgetError: There is none; says what would be possible.
        """
        limits = self._limits(budget, scale)
        minimize = DAMAGE if budget.goal == "quality" else BYTES
        try:
            return self.plan(allocate(self.items(), minimize, limits))
        except BudgetError as error:
            raise BudgetError(f"{self._nearest(budget, scale)} ({error})") from error

    def plan(self, found: Allocation) -> Plan:
        """Return an allocation as a plan."""
        types = {
            tensor: found.chosen[group.name].name
            for group in self.choices
            for tensor in group.tensors
        }
        rows = tuple(_row(item, found.chosen[item.name]) for item in self.items())
        size = int(found.totals[BYTES])
        bits = (8 * size + self.fixed_bits) / self.elements
        return Plan(types, rows, size + self.fixed, round(bits, 4), found.totals[DAMAGE])

    def front(self, points: int) -> list[Plan]:
        """Return plans of so many sizes, the smallest first: the least damage at each."""
        items = self.items()
        least, most = (sum(f(c.costs[BYTES] for c in i.choices) for i in items) for f in (min, max))
        limits = [least * (most / least) ** (k / (points - 1)) for k in range(points)]
        plans = [self.plan(allocate(items, DAMAGE, {BYTES: limit})) for limit in limits]
        return list({plan.bytes: plan for plan in plans}.values())

    def _limits(self, budget: Budget, scale: float) -> dict[str, float]:
        sizes = []
        if budget.max_size is not None:
            sizes.append(float(budget.max_size - self.fixed))
        if budget.target_bpw is not None:
            sizes.append((budget.target_bpw * self.elements - self.fixed_bits) / 8)
        limits = {BYTES: min(sizes)} if sizes else {}
        if budget.max_kl is not None:
            limits[DAMAGE] = budget.max_kl / scale
        return limits

    def _nearest(self, budget: Budget, scale: float) -> str:
        """Say what comes nearest to each limit."""
        items = self.items()
        smallest = self.plan(allocate(items, BYTES, {}))
        said = [
            f"the smallest file is {smallest.bytes:,} bytes ({smallest.bits_per_weight:g} bits a weight)"
        ]
        if budget.max_kl is not None:
            best = self.plan(allocate(items, DAMAGE, {}))
            assert best.damage is not None
            said.append(
                f"the least KL divergence about {best.damage * scale:.3g} at {best.bytes:,} bytes"
            )
            limits = self._limits(budget, scale)
            if limits.keys() == {BYTES, DAMAGE}:
                said += self._two_sided(items, limits, scale)
        return f"no plan keeps these limits; {'; '.join(said)}"

    def _two_sided(self, items: list[Item], limits: Mapping[str, float], scale: float) -> list[str]:
        """Say what one limit alone would give of the other."""
        said = []
        for kept, freed in ((BYTES, DAMAGE), (DAMAGE, BYTES)):
            try:
                plan = self.plan(allocate(items, freed, {kept: limits[kept]}))
            except BudgetError:
                continue
            assert plan.damage is not None
            said.append(
                f"within {'the size' if kept == BYTES else '--max-kl'} the best has {plan.bytes:,} bytes and "
                f"a KL divergence of about {plan.damage * scale:.3g}"
            )
        return said


def _row(item: Item, chosen: Choice) -> Row:
    """Return a row of the report, with the neighbours of what was chosen."""
    size, damage = chosen.costs[BYTES], chosen.costs[DAMAGE]
    better = [c for c in item.choices if c.costs[DAMAGE] < damage and c.costs[BYTES] > size]
    cheaper = [c for c in item.choices if c.costs[BYTES] < size]
    return Row(
        item.name,
        chosen.name,
        int(size),
        damage,
        _difference(min(better, key=lambda c: c.costs[BYTES], default=None), chosen),
        _difference(min(cheaper, key=lambda c: c.costs[DAMAGE], default=None), chosen),
    )


def _difference(other: Choice | None, chosen: Choice) -> dict[str, Any] | None:
    if other is None:
        return None
    return {
        "format": other.name,
        BYTES: int(other.costs[BYTES] - chosen.costs[BYTES]),
        DAMAGE: other.costs[DAMAGE] - chosen.costs[DAMAGE],
    }
