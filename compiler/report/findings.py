"""``Finding``: one thing that a reader should look at, of a kind that has a name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from qcompile.compiler.report.bundles import Entry
from qcompile.compiler.report.differences import WORSE_DB, Difference, LayerChange

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Rule:
    """A kind of finding.

    Args:
        id: Its name for machines.
        level: How serious it is.
        text: What it means, a sentence.
        rank: Its place in a report.
    """

    id: str
    level: Level
    text: str
    rank: int


GATE = Rule("gate-failed", "error", "A gate of the build does not hold.", 0)
LAYER_WORSE = Rule("layer-worse", "warning", "A layer does more damage than in the baseline.", 1)
OUTPUT_WORSE = Rule("output-worse", "warning", "An output is further from PyTorch than before.", 2)
GREW = Rule("artifact-grew", "warning", "The artifact is larger than in the baseline.", 3)
FORMAT = Rule("format-changed", "note", "A layer is stored in another format than before.", 4)
FLOAT = Rule("stays-float", "note", "The engine computes an op in float.", 5)
NOTE = Rule("note", "note", "The build said something that one might not expect.", 6)
RULES = (GATE, LAYER_WORSE, OUTPUT_WORSE, GREW, FORMAT, FLOAT, NOTE)


@dataclass(frozen=True)
class Finding:
    """One finding.

    Args:
        rule: Its kind.
        bundle: The bundle's label.
        message: What was found, a sentence.
        layer: The layer or output that it is about; nothing for the whole bundle.
    """

    rule: Rule
    bundle: str
    message: str
    layer: str = ""


def of_bundle(entry: Entry) -> Iterator[Finding]:
    """Give what a bundle's manifest says by itself."""
    for gate in entry.gates:
        if not gate.passed:
            yield Finding(GATE, entry.label, f"gate {gate.name}: {gate.message}")
    for sentence in entry.floats:
        yield Finding(FLOAT, entry.label, f"stays float in the engine: {sentence}")
    for sentence in entry.notes:
        yield Finding(NOTE, entry.label, sentence)


def of_difference(found: Difference) -> Iterator[Finding]:
    """Give what got worse since the baseline, and what changed format."""
    label = found.after.label
    grown = found.after.bytes - found.before.bytes
    if grown > 0:
        yield Finding(GREW, label, f"the artifact grew by {grown:,} to {found.after.bytes:,} bytes")
    for figure in found.figures:
        if figure.unit == "dB" and figure.change is not None and figure.change < -WORSE_DB:
            message = f"{figure.name}: {figure.before:.1f} dB before, {figure.after:.1f} dB now"
            yield Finding(OUTPUT_WORSE, label, message, figure.name.removeprefix("SQNR of "))
    for row in found.changed:
        yield from _of_layer(label, row)


def _of_layer(label: str, row: LayerChange) -> Iterator[Finding]:
    if row.worse and row.before and row.after:
        message = (
            f"{row.name}: its own error leaves {row.after.weight_db:.1f} dB, "
            f"{row.before.weight_db:.1f} dB before"
        )
        yield Finding(LAYER_WORSE, label, message, row.name)
    if row.formats:
        message = f"{row.name}: {row.formats[0]} before, {row.formats[1]} now"
        yield Finding(FORMAT, label, message, row.name)
