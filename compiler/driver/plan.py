"""``Plan``: a format for each tensor of a model, and why; it can be saved and read again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qcompile.compiler.ir.errors import TargetError
from qcompile.passes.mixed_precision.allocation import Choice, Item
from qcompile.targets.options import BlockOptions

SCHEMA = 1
BYTES, DAMAGE, TIME = "bytes", "damage", "milliseconds"
MEASURES = {"kl": "KL divergence", "error": "relative error"}
"""What damage is."""


@dataclass(frozen=True)
class Row:
    """What a tensor was given.

    Args:
        tensor: Its name in the file; of tensors that are stored alike, the first.
        format: Of its weights.
        bytes: That it takes.
        damage: Predicted, that it causes; see ``Plan.measure``.
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
        bits_per_weight: Of the file's tensors, rounded down to a millionth: what keeps a limit still does.
        damage: Predicted.
        measure: Of what: ``kl``, KL divergence in nats a token or a prediction; ``error``, squared error of
            the outputs over their power.
        ram: Bytes of a process that runs it, at most; if that was asked for.
        milliseconds: Predicted, a token; if that was asked for.
    """

    types: Mapping[str, str]
    rows: tuple[Row, ...] = ()
    bytes: int | None = None
    bits_per_weight: float | None = None
    damage: float | None = None
    measure: str = "kl"
    ram: int | None = None
    milliseconds: float | None = None

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


def row(item: Item, chosen: Choice) -> Row:
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
