"""``Difference``: what changed from one bundle to another, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.figures import difference, plain
from qcompile.compiler.report.latencies import Latency
from qcompile.compiler.report.layers import Layer

WORSE_DB = 0.1
"""Decibels that a layer or an output must lose to be called worse: what tables show of them."""


@dataclass(frozen=True)
class Figure:
    """A number of a whole bundle, before and after.

    Args:
        name: What it is.
        unit: ``bytes``, ``dB``, ...; nothing for a metric of the model's own.
        before: In the first bundle; ``None`` where it was not measured.
        after: In the second.
        digits: Behind the point, where it is printed.
    """

    name: str
    unit: str
    before: float | None
    after: float | None
    digits: int = 0

    @property
    def change(self) -> float | None:
        """What was added."""
        return difference(self.before, self.after)


@dataclass(frozen=True)
class Setting:
    """An option or a version; ``None`` on the side that does not have it."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class LayerChange:
    """A layer in both bundles, or in one of them."""

    name: str
    before: Layer | None
    after: Layer | None

    @property
    def formats(self) -> tuple[str, str] | None:
        """The formats, if they differ."""
        if not self.before or not self.after or self.before.format == self.after.format:
            return None
        return self.before.format, self.after.format

    @property
    def bytes(self) -> int:
        """Bytes that were added."""
        return (self.after.bytes if self.after else 0) - (self.before.bytes if self.before else 0)

    @property
    def weight_db(self) -> float | None:
        """Decibels that the layer's own error gained (better) or lost (worse)."""
        return self._change("weight_db")

    @property
    def output_db(self) -> float | None:
        """The same of the error of everything up to its output."""
        return self._change("output_db")

    @property
    def damage(self) -> float | None:
        """What a plan predicted: above 0 is worse."""
        return self._change("damage")

    @property
    def worse(self) -> bool:
        """Whether the layer itself, not what comes before it, does more damage."""
        return self.weight_db is not None and self.weight_db < -WORSE_DB

    @property
    def better(self) -> bool:
        """Whether the layer itself does less damage."""
        return self.weight_db is not None and self.weight_db > WORSE_DB

    @property
    def what(self) -> tuple[str, ...]:
        """What changed, in words; nothing for a layer that is as it was."""
        if self.before is None or self.after is None:
            return ("new",) if self.before is None else ("gone",)
        marks = (
            ("format", self.formats is not None),
            ("grew", self.bytes > 0),
            ("shrank", self.bytes < 0),
            ("worse", self.worse),
            ("better", self.better),
        )
        return tuple(name for name, holds in marks if holds)

    def _change(self, name: str) -> float | None:
        if self.before is None or self.after is None:
            return None
        found = difference(getattr(self.before, name), getattr(self.after, name))
        return None if found is None else round(found, 6) + 0.0


@dataclass(frozen=True)
class Difference:
    """Two bundles.

    Args:
        before: The first, or the baseline's.
        after: The second.
    """

    before: Entry
    after: Entry

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What is not compared, or only in part, a sentence each."""
        (a, b), found = (self.before, self.after), []
        if a.manifest.model.get("sha256") != b.manifest.model.get("sha256"):
            common = sum(1 for row in self.layers if row.before and row.after)
            found.append(
                f"they were built from different models ({plain(a.manifest.name)} and "
                f"{plain(b.manifest.name)}): {common} of {len(self.layers)} layers have the same name, "
                "and only those are compared"
            )
        if a.manifest.calibration.get("sha256") != b.manifest.calibration.get("sha256"):
            found.append("they were calibrated with different data")
        return tuple(found)

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """Numbers of the whole that at least one of the two has."""
        a, b = self.before, self.after
        rows = [
            Figure("artifact", "bytes", a.bytes, b.bytes),
            Figure("bits a weight", "bits", a.bits, b.bits, 2),
            *_latencies(a.latency, b.latency),
            Figure("memory", "bytes", a.ram_bytes, b.ram_bytes),
            *self._outputs(),
            *self._metrics(),
        ]
        return tuple(row for row in rows if row.before is not None or row.after is not None)

    @cached_property
    def layers(self) -> tuple[LayerChange, ...]:
        """All layers, those that changed most in their own damage first."""
        sides = [
            {layer.name: layer for layer in entry.layers} for entry in (self.before, self.after)
        ]
        names = sides[0].keys() | sides[1].keys()
        rows = [LayerChange(name, *(side.get(name) for side in sides)) for name in names]
        return tuple(sorted(rows, key=_urgency))

    @property
    def changed(self) -> tuple[LayerChange, ...]:
        """The layers that are not as they were."""
        return tuple(row for row in self.layers if row.what)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Options and tool versions that differ, and of what the bundles are."""
        sides = [_settings(entry) for entry in (self.before, self.after)]
        names = sorted(sides[0].keys() | sides[1].keys())
        rows = (Setting(name, *(side.get(name) for side in sides)) for name in names)
        return tuple(row for row in rows if row.before != row.after)

    @property
    def gates(self) -> tuple[Setting, ...]:
        """Gates that passed in one of the two only."""
        sides = [
            {g.name: "passed" if g.passed else "failed" for g in entry.gates}
            for entry in (self.before, self.after)
        ]
        rows = (
            Setting(name, *(side.get(name) for side in sides))
            for name in sorted(sides[0].keys() | sides[1].keys())
        )
        return tuple(row for row in rows if row.before != row.after)

    @property
    def empty(self) -> bool:
        """Whether nothing differs that a manifest tells."""
        return not (
            self.changed or self.settings or self.gates or any(f.change for f in self.figures)
        )

    def _outputs(self) -> list[Figure]:
        a, b = ({o.name: o.total_db for o in e.outputs} for e in (self.before, self.after))
        return [
            Figure(f"SQNR of {name}", "dB", a.get(name), b.get(name), 1)
            for name in sorted(a.keys() | b.keys())
        ]

    def _metrics(self) -> list[Figure]:
        a, b = ({q.name: q.after for q in e.quality} for e in (self.before, self.after))
        return [Figure(n, "", a.get(n), b.get(n), 2) for n in sorted(a.keys() | b.keys())]


def _latencies(before: Latency | None, after: Latency | None) -> list[Figure]:
    """Return the latencies, if they are of one kind: those of two machines say nothing about two bundles."""
    known = [latency for latency in (before, after) if latency]
    if len({(latency.of, latency.where) for latency in known}) != 1:
        return []
    old, new = (latency.ms if latency else None for latency in (before, after))
    return [Figure("latency", known[0].unit, old, new, digits=3)]


def _settings(entry: Entry) -> dict[str, str]:
    m = entry.manifest
    kinds: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("option", m.options),
        ("tool", m.tools),
        ("bundle", {"target": m.target, "format": m.format, "precision": m.precision}),
        ("engine", m.engine),
    )
    return {
        f"{kind} {plain(name)}": plain(
            value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        )
        for kind, values in kinds
        for name, value in values.items()
    }


def _urgency(row: LayerChange) -> tuple[bool, float, str]:
    loss = row.weight_db if row.weight_db is not None else row.output_db
    return not row.what, loss if loss is not None else 0.0, row.name
