"""A prediction of which compute units can take each op of a program, and why one cannot.

Core ML decides on the device, by cost too, and says so only there: a unit that can take an op need not get
it (https://github.com/apple/coremltools/issues/1780). So this is a check for known obstacles before anyone
has a Mac at hand, not a measurement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from qcompile.targets.coreml.reference.program import Block, Name, Operation, Program, Stored
from qcompile.targets.coreml.reference.types import TensorType, ValueType
from qcompile.targets.coreml.unit_rules import NEURAL_ENGINE, RULES, Site
from qcompile.targets.device import Device

MAX_IPHONE_BYTES = 1 << 30
"""Of a model on an iPhone's Neural Engine
(https://apple.github.io/coremltools/docs-guides/source/mlmodel-utilities.html, "Bisect Model")."""
PREDICTION = "This is a prediction by published rules; Xcode's performance report measures it."


@dataclass(frozen=True)
class Row:
    """What is predicted for one op.

    Args:
        op: MIL's name of it.
        name: Its own.
        units: Those that can take it.
        why: What keeps it off the others, the weightiest first; empty if nothing does.
        sources: Where each reason was read.
    """

    op: str
    name: str
    units: tuple[str, ...]
    why: str = ""
    sources: tuple[str, ...] = ()


def predict(program: Program, device: Device, *, enumerated: bool = False) -> list[Row]:
    """Return a row for each op of each function in order, constants aside.

    Args:
        program: As read from a package.
        device: With the units and the generation of its Neural Engine.
        enumerated: Whether the input shapes are a list, not a range; the program's types are the same.
    """
    return [
        _row(site, device)
        for function in program.functions.values()
        for site in _sites(function.block, {}, {}, enumerated)
    ]


def summary(rows: Sequence[Row]) -> list[str]:
    """Return the prediction in sentences, the reasons by how many ops they keep off."""
    on = sum(NEURAL_ENGINE in row.units for row in rows)
    runs = sum(there for there, _ in groupby(rows, lambda row: NEURAL_ENGINE in row.units))
    said = f"{on} of {len(rows)} ops can run on the {NEURAL_ENGINE}"
    if 0 < on < len(rows):
        said += f", in {runs} stretch{'es' if runs > 1 else ''}; each change of unit takes time"
    return [f"{said}.", *_reasons(rows), PREDICTION]


def cautions(program: Program, device: Device) -> list[str]:
    """Return what may keep the whole program off the Neural Engine of a device."""
    stored = sum(_stored_bytes(f.block) for f in program.functions.values())
    if device.os != "ios" or stored <= MAX_IPHONE_BYTES:
        return []
    said = (
        f"The weights take {stored / 2**30:.2f} GiB, and an iPhone's {NEURAL_ENGINE} takes models of at "
        "most 1; fewer bits a weight, or two models in a pipeline, would fit."
    )
    return [said]


def _reasons(rows: Sequence[Row]) -> Iterator[str]:
    kept = [row for row in rows if NEURAL_ENGINE not in row.units]
    counts = Counter(row.why.split("; ")[0] for row in kept)
    for why, count in counts.most_common():
        ops = sorted({row.op for row in kept if row.why.split("; ")[0] == why})
        yield f"{count} not ({', '.join(ops)}): {why}."


def _row(site: Site, device: Device) -> Row:
    found = [rule for rule in RULES if rule.test(site, device)]
    off = {unit for rule in found for unit in rule.keeps_off}
    return Row(
        site.operation.type,
        site.operation.name,
        tuple(unit for unit in device.compute_units if unit not in off),
        "; ".join(dict.fromkeys(rule.why for rule in found)),
        tuple(dict.fromkeys(rule.source for rule in found)),
    )


def _sites(
    block: Block,
    outer: Mapping[str, ValueType],
    outer_constants: Mapping[str, TensorType],
    enumerated: bool,
) -> Iterator[Site]:
    """Yield the ops of a block and, after each, those of its own blocks."""
    types = {**outer, **dict(block.inputs)}
    constants = dict(outer_constants)
    for operation in block.operations:
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            constants.update((n, t) for n, t in operation.outputs if isinstance(t, TensorType))
            continue
        yield _site(operation, types, constants, enumerated)
        for inner in operation.blocks:
            yield from _sites(inner, types, constants, enumerated)
        types.update(operation.outputs)


def _site(
    operation: Operation,
    types: Mapping[str, ValueType],
    constants: Mapping[str, TensorType],
    enumerated: bool,
) -> Site:
    named = {key: value for key, value in operation.inputs.items() if isinstance(value, Name)}
    return Site(
        operation,
        (*(types[n] for n in operation.reads() if n in types), *(t for _, t in operation.outputs)),
        {key: constants[value] for key, value in named.items() if value in constants},
        frozenset(key for key, value in named.items() if value in types),
        enumerated,
    )


def _stored_bytes(block: Block) -> int:
    total = 0
    for operation in block.operations:
        total += sum(_stored_bytes(inner) for inner in operation.blocks)
        for value in operation.inputs.values():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Stored):
                    shape = [size or 0 for size in one.type.shape]
                    total += (math.prod(shape) * one.type.element.bits + 7) // 8
    return total
