"""Control flow and states: the ops that run blocks, or read and write what outlives a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.program import Block, Operation

MAX_WORK = 1 << 20
"""Of all blocks of ``cond`` and ``while_loop`` in one run: iterations, ops, and 64 KiB of results each
count as one. It is some 20 seconds, and the same on each machine: a loop that never ends is refused."""
WORK_BYTES = 64 << 10


@dataclass
class Budget:
    """How much work nested blocks have left in one run."""

    left: int = field(default_factory=lambda: MAX_WORK)

    def spend(self, results: Sequence[Any] = ()) -> None:
        """Take an iteration, or an op with its results, off.

        Raises:
            ExecutionError: Nothing is left.
        """
        size = sum(value.nbytes for value in results if isinstance(value, Tensor))
        self.left -= 1 + size // WORK_BYTES
        if self.left < 0:
            raise ExecutionError("its loops do not end in time: more work than any model needs")


class Scope(Protocol):
    """What an op of this module may do."""

    state: dict[str, Tensor]
    budget: Budget

    def read(self, argument: Any) -> Any:
        """Return what an argument stands for."""

    def nested(self, block: Block, arguments: Sequence[Any]) -> list[Any]:
        """Run a block and return its outputs."""


def run_control(operation: Operation, scope: Scope) -> list[Any]:
    """Return the results of an op of ``CONTROL``.

    Raises:
        ExecutionError: It lacks a block or an input, or breaks one of the op's rules.
    """
    return _OPS[operation.type](operation, scope)


def _cond(operation: Operation, scope: Scope) -> list[Any]:
    blocks = _two_blocks(operation)
    return scope.nested(blocks[0 if bool(scope.read(_input(operation, "pred"))) else 1], ())


def _while_loop(operation: Operation, scope: Scope) -> list[Any]:
    condition, body = _two_blocks(operation)
    given = _input(operation, "loop_vars")
    carried = [scope.read(v) for v in (given if isinstance(given, list) else [given])]
    while True:
        scope.budget.spend()
        (go_on,) = scope.nested(condition, carried)
        if not bool(go_on):
            return carried
        carried = scope.nested(body, carried)


def _read_state(operation: Operation, scope: Scope) -> list[Any]:
    return [_state(operation, scope).clone()]


def _write_state(operation: Operation, scope: Scope) -> list[Any]:
    state, value = _state(operation, scope), scope.read(_input(operation, "data"))
    if not isinstance(value, Tensor) or (value.shape, value.dtype) != (state.shape, state.dtype):
        raise ExecutionError(
            f"it writes {_described(value)} to a state that is {_described(state)}"
        )
    scope.state[str(operation.inputs["input"])] = value.clone()
    return []


def _described(value: Any) -> str:
    is_tensor = isinstance(value, Tensor)
    return f"{value.dtype}{list(value.shape)}" if is_tensor else type(value).__name__


def _state(operation: Operation, scope: Scope) -> Tensor:
    name = str(_input(operation, "input"))
    if name not in scope.state:
        raise ExecutionError(f"the function has no state {name!r}")
    return scope.state[name]


def _two_blocks(operation: Operation) -> tuple[Block, Block]:
    if len(operation.blocks) != 2:
        raise ExecutionError(f"it has {len(operation.blocks)} blocks, not 2")
    return operation.blocks[0], operation.blocks[1]


def _input(operation: Operation, name: str) -> Any:
    if name not in operation.inputs:
        raise ExecutionError(f"it lacks its input {name!r}")
    return operation.inputs[name]


_OPS: dict[str, Callable[[Operation, Scope], list[Any]]] = {
    "cond": _cond,
    "read_state": _read_state,
    "while_loop": _while_loop,
    "write_state": _write_state,
}
CONTROL = ("const", *_OPS)
"""Ops that are no function of their inputs alone; ``constants.py`` has ``const``."""
