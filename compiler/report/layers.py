"""The rows of a bundle: its layers, the values that were compared in its engine, its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.report.figures import count, number, optional, text
from qcompile.runtime.manifest import Manifest

ERRORS = ("export", "quantization", "engine_outputs", "total")
"""The three errors of an output, and their sum, as the manifest names them."""


@dataclass(frozen=True)
class Layer:
    """One layer.

    Args:
        name: FQN of its weight.
        op: The op's name.
        format: Of the weight.
        parameters: Elements of the weight.
        bytes: Of the stored weight with its scales.
        rounding: The method.
        weight_db: Output power over the error of this layer's weight alone; ``None``: not measured, or none.
        output_db: Output power over the error of all that is quantized up to here.
        damage: What a plan predicted of this weight; ``None`` without a plan.
        note: What is not as usual.
    """

    name: str
    op: str
    format: str
    parameters: int
    bytes: int
    rounding: str
    weight_db: float | None
    output_db: float | None
    damage: float | None
    note: str

    @property
    def bits(self) -> float | None:
        """Bits of a weight, with scales."""
        return 8 * self.bytes / self.parameters if self.parameters else None


@dataclass(frozen=True)
class Planned:
    """What a budget gave a tensor of the file, and the plan's alternatives in words."""

    tensor: str
    format: str
    bytes: int
    damage: float
    better: str
    cheaper: str


@dataclass(frozen=True)
class Value:
    """A value that the engine stores, compared with the quantized graph's, given those before it.

    Args:
        name: In the graph or the file.
        values: How many numbers it has.
        differing: Share of them that differ.
        largest: Largest difference, in codes for integers.
        sqnr_db: Of floats; ``None`` for codes.
    """

    name: str
    values: int
    differing: float
    largest: float
    sqnr_db: float | None


@dataclass(frozen=True)
class OutputErrors:
    """The errors of an output: by kind the decibels, ``None`` where equal, and the largest difference."""

    name: str
    sqnr_db: Mapping[str, float | None]
    largest: Mapping[str, float]

    @property
    def total_db(self) -> float | None:
        """The artifact against PyTorch."""
        return self.sqnr_db.get("total")


def layers(manifest: Manifest) -> tuple[Layer, ...]:
    """Return the layers, those with the most damaged outputs first."""
    damages = {row["tensor"]: number(row["damage"]) for row in manifest.plan.get("rows", ())}
    return tuple(_layer(row, damages) for row in manifest.layers)


def planned(manifest: Manifest) -> tuple[Planned, ...]:
    """Return the rows of the plan, those that do most damage first."""
    rows = [
        Planned(
            text(row["tensor"]), text(row["format"]), count(row["bytes"]), number(row["damage"]) or 0.0,
            _other(row["better"]), _other(row["cheaper"]),
        )
        for row in manifest.plan.get("rows", ())
    ]  # fmt: skip
    return tuple(sorted(rows, key=lambda row: (-row.damage, row.tensor)))


def values(manifest: Manifest) -> tuple[Value, ...]:
    """Return the values that were compared in the engine; those that differ most first."""
    rows = [
        Value(
            text(row["name"]), count(row["values"]), number(row["differing"]) or 0.0,
            number(row["largest"]) or 0.0, number(row["sqnr_db"]),
        )
        for row in manifest.parity.get("engine", ())
    ]  # fmt: skip
    return tuple(sorted(rows, key=_agreement))


def outputs(manifest: Manifest) -> tuple[OutputErrors, ...]:
    """Return the errors of each output."""
    found = []
    for name in manifest.parity.get("total", {}):
        rows = {kind: manifest.parity[kind][name] for kind in ERRORS if kind in manifest.parity}
        decibels = {kind: number(row["sqnr_db"]) for kind, row in rows.items()}
        largest = {kind: number(row["largest"]) or 0.0 for kind, row in rows.items()}
        found.append(OutputErrors(text(name), decibels, largest))
    return tuple(sorted(found, key=lambda output: output.name))


def _layer(row: Mapping[str, Any], damages: Mapping[str, float | None]) -> Layer:
    return Layer(
        name=text(row["name"]),
        op=text(row["op"]),
        format=text(row["weight"]),
        parameters=count(row["parameters"]),
        bytes=count(row["bytes"]),
        rounding=text(row.get("rounding", "")),
        weight_db=optional(row, "weight_sqnr_db"),
        output_db=optional(row, "output_sqnr_db"),
        damage=damages.get(row["name"]),
        note=text(row.get("note", "")),
    )


def _other(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{text(row['format'])}: {row['bytes']:+,} bytes, {row['damage']:+.2g}"


def _agreement(row: Value) -> tuple[float, float, str]:
    """Return a key: codes that differ most often first, then floats with the fewest decibels."""
    if row.sqnr_db is None:
        return (0.0 if row.differing else 2.0, -row.differing, row.name)
    return (1.0, row.sqnr_db, row.name)
