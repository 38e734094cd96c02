"""The order of work in a block: its ops, and the values that nobody reads after each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from qcompile.targets.coreml.reference.control import CONTROL
from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.program import Block, Operation
from qcompile.targets.coreml.reference.registry import operators

_MAX_LISTED = 50


@dataclass(frozen=True)
class Step:
    """One op, and the names of the values that are dropped after it."""

    operation: Operation
    last_uses: tuple[str, ...]


def plan(block: Block) -> list[Step]:
    """Return the ops of a block in order, constants aside."""
    last: dict[str, int] = {}
    own = {name for o in block.operations for name, _ in o.outputs}
    for index, operation in enumerate(block.operations):
        for name in [*_reads_deep(operation), *(n for n, _ in operation.outputs)]:
            last[name] = index
    kept = set(block.outputs)
    ends: dict[int, list[str]] = {}
    for name, index in last.items():
        if name in own and name not in kept:
            ends.setdefault(index, []).append(name)
    return [
        Step(o, tuple(ends.get(i, ()))) for i, o in enumerate(block.operations) if o.type != "const"
    ]


def _reads_deep(operation: Operation) -> Iterator[str]:
    yield from operation.reads()
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _reads_deep(inner)


def refuse_unknown(block: Block) -> None:
    """Refuse ops that are not known.

    Raises:
        ExecutionError: There are some; names all and how often each is used.
    """
    known = operators()
    counts: Counter[str] = Counter()
    pending = [block]
    while pending:
        for operation in pending.pop().operations:
            pending += operation.blocks
            if operation.type not in known and operation.type not in CONTROL:
                counts[operation.type] += 1
    if counts:
        names = [f"{name} ({count} times)" for name, count in sorted(counts.items())]
        more = [f"and {len(names) - _MAX_LISTED} more"] if len(names) > _MAX_LISTED else []
        raise ExecutionError(
            f"the program uses {len(counts)} op(s) that the reference interpreter lacks: "
            f"{', '.join(names[:_MAX_LISTED] + more)}; docs/coreml-ops.md lists those that it has"
        )
