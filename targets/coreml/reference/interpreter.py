"""Runs an ML Program op by op in torch, with Core ML's types: each result is rounded to its type.

What this proves: that the program on disk, with its weights, attributes, shapes and types, computes what
it should by MIL's specification. What it does not: which kernels a device chooses, how these order their
sums, and in which precision they keep what is inside of an op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.constants import Constants
from qcompile.targets.coreml.reference.control import CONTROL, Budget, run_control
from qcompile.targets.coreml.reference.errors import ExecutionError, PackageError
from qcompile.targets.coreml.reference.limits import bounded
from qcompile.targets.coreml.reference.package import Package
from qcompile.targets.coreml.reference.plan import Step, plan, refuse_unknown
from qcompile.targets.coreml.reference.program import Block, Name, Operation, Stored
from qcompile.targets.coreml.reference.registry import Op, operators
from qcompile.targets.coreml.reference.types import StateType, TensorType

Observer = Callable[[str, Any], None]
_BREAKS_A_RULE = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What torch raises where inputs do not fit an op."""
_REASON = 500
"""Characters of it: torch may list all values of a tensor."""


@dataclass
class Interpreter:
    """One function of a package, ready to run.

    Args:
        package: The package.
        function: Its name; the package's default if it is left out, which is ``main`` where a package has
            one function only.
        cache_bytes: Of decompressed and widened weights that are kept between runs.
        state: What states hold, by name; zeros before the first run.

    Raises:
        ExecutionError: The program has no such function, or uses ops that are not known; names all.
    """

    package: Package
    function: str = ""
    cache_bytes: int = 1 << 30
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        functions = self.package.program.functions
        self.function = self.function or self.package.description.defaultFunctionName or "main"
        if self.function not in functions:
            raise ExecutionError(
                f"there is no function {self.function!r}, but {', '.join(functions)}"
            )
        self._block = functions[self.function].block
        refuse_unknown(self._block)
        self._constants = Constants(self.package, self.cache_bytes)
        self._steps: dict[int, list[Step]] = {}
        self._ops = operators()
        self._planned(self._block)

    @property
    def inputs(self) -> list[tuple[str, TensorType]]:
        """Names and types of the inputs, in order; states are not among them."""
        return [(n, t) for n, t in self._block.inputs if isinstance(t, TensorType)]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self._block.outputs

    def run(
        self, inputs: Mapping[str, Tensor], observe: Observer = lambda name, value: None
    ) -> dict[str, Any]:
        """Run the function; states go on from where the last run left them.

        Args:
            inputs: By name, in the program's dtypes.
            observe: Told each value as it is computed.

        Raises:
            ExecutionError: The inputs do not fit, or a value breaks an op's rules; names the op.
            PackageError: A weight cannot be read.
        """
        values: dict[str, Any] = {}
        for name, kind in self.inputs:
            if name not in inputs:
                raise ExecutionError(f"the program needs the input {name!r}")
            values[name] = _checked(inputs[name], kind, f"the input {name!r}")
        self._reset_missing_states()
        scope = _Scope(self, values, observe, Budget(), self.state)
        with torch.no_grad():
            self._run_block(self._block, scope)
        return {name: scope.read(Name(name)) for name in self.outputs}

    def _reset_missing_states(self) -> None:
        for name, kind in self._block.inputs:
            if isinstance(kind, StateType) and name not in self.state:
                shape = bounded([s or 0 for s in kind.wrapped.shape], kind.wrapped.dtype)
                self.state[name] = torch.zeros(shape, dtype=kind.wrapped.dtype)

    def _run_block(self, block: Block, scope: _Scope) -> None:
        for step in self._planned(block):
            operation = step.operation
            try:
                found = self._compute(operation, scope)
                scope.spend(found)
            except (ExecutionError, PackageError, *_BREAKS_A_RULE) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0][:_REASON]
                raise ExecutionError(f"{operation.type} {operation.name!r}: {reason}") from error
            for (name, _), result in zip(operation.outputs, found, strict=True):
                if not self._constants.holds(name):
                    scope.values[name] = result
                scope.observe(name, result)
            for name in step.last_uses:
                scope.values.pop(name, None)

    def _compute(self, operation: Operation, scope: _Scope) -> list[Any]:
        names = [name for name, _ in operation.outputs]
        if names and all(self._constants.holds(name) for name in names):
            return [self._constants.get(name) for name in names]
        results = self._results(operation, scope)
        if len(results) != len(operation.outputs):
            raise ExecutionError(f"it gives {len(results)} results, not {len(operation.outputs)}")
        found = [
            _checked(value, kind, f"the result {name!r}")
            for value, (name, kind) in zip(results, operation.outputs, strict=True)
        ]
        if operation.type.startswith("constexpr_"):
            for name, value in zip(names, found, strict=True):
                self._constants.keep(name, value)
        return found

    def _results(self, operation: Operation, scope: _Scope) -> Sequence[Any]:
        if operation.type in CONTROL:
            return run_control(operation, scope)
        op = self._ops[operation.type]
        arguments = {
            key: self._argument(value, scope.values, op) for key, value in operation.inputs.items()
        }
        if op.wants_result:
            arguments["result"] = operation.outputs[0][1]
        result = op.run(**arguments)
        return result if isinstance(result, tuple) else (result,)

    def _argument(self, value: Any, values: Mapping[str, Any], op: Op) -> Any:
        if isinstance(value, list):
            return [self._argument(v, values, op) for v in value]
        if isinstance(value, Name):
            if value not in values:
                return self._constants.argument(value, wide=op.floats == "wide")
            found = values[value]
        elif isinstance(value, Stored):
            found = self.package.load(value)
        else:
            found = value
        is_half = isinstance(found, Tensor) and found.dtype == torch.float16
        return found.float() if is_half and op.floats == "wide" else found

    def _planned(self, block: Block) -> list[Step]:
        """Return a block's steps, made once."""
        if id(block) not in self._steps:
            self._steps[id(block)] = plan(block)
            self._constants.add(block)
        return self._steps[id(block)]


@dataclass
class _Scope:
    """The values that the ops of one block see; ``qcompile.targets.coreml.reference.control.Scope``."""

    interpreter: Interpreter
    values: dict[str, Any]
    observe: Observer
    budget: Budget
    state: dict[str, Tensor]
    is_nested: bool = False

    def read(self, argument: Any) -> Any:
        """Return what an argument stands for."""
        if isinstance(argument, Stored):
            return self.interpreter.package.load(argument)
        if not isinstance(argument, Name):
            return argument
        if argument in self.values:
            return self.values[argument]
        return self.interpreter._constants.get(argument)

    def nested(self, block: Block, arguments: Sequence[Any]) -> list[Any]:
        """Run a block and return its outputs."""
        if len(arguments) != len(block.inputs):
            raise ExecutionError(f"a block takes {len(block.inputs)} values, not {len(arguments)}")
        inner = _Scope(
            self.interpreter, dict(self.values), self.observe, self.budget, self.state, True
        )
        for (name, kind), value in zip(block.inputs, arguments, strict=True):
            inner.values[name] = _checked(value, kind, f"the block's input {name!r}")
        self.interpreter._run_block(block, inner)
        return [inner.read(Name(name)) for name in block.outputs]

    def spend(self, results: Sequence[Any]) -> None:
        """Take an op off the budget of nested blocks."""
        if self.is_nested:
            self.budget.spend(results)


def _checked(value: Any, kind: Any, what: str) -> Any:
    """Return a value as its declared type has it; only a float may be rounded to get there."""
    if isinstance(kind, StateType):
        kind = kind.wrapped
    if not isinstance(kind, TensorType) or not isinstance(value, Tensor):
        if isinstance(kind, TensorType) and kind.element.name != "string":
            raise ExecutionError(f"{what} is no tensor, but {type(value).__name__}")
        return value
    if value.dtype != kind.dtype:
        if not (value.is_floating_point() and kind.dtype.is_floating_point):
            raise ExecutionError(f"{what} has dtype {value.dtype}, the program says {kind}")
        value = value.to(kind.dtype)
    same = len(value.shape) == len(kind.shape) and all(
        declared in (None, size) for size, declared in zip(value.shape, kind.shape, strict=True)
    )
    if not same:
        raise ExecutionError(f"{what} has shape {list(value.shape)}, the program says {kind}")
    bounded(value.shape, value.dtype)  # a view may be larger than what it stands on
    return value
