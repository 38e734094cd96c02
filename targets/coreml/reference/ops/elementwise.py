"""Element-wise ops of one and two inputs. Source: coremltools' op definitions, elementwise_*.py.

Integers wrap at their width, as torch's and numpy's do. A float becomes an integer as on Apple's CPUs
(Arm's FCVTZS): towards zero, values out of range become the nearest bound and NaN becomes 0; C and numpy
leave that open. NaN goes through ``maximum``, ``minimum`` and ``clip``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.limits import broadcast
from qcompile.targets.coreml.reference.registry import op
from qcompile.targets.coreml.reference.types import DTYPES, TensorType

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,  # half to even
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "sub": torch.sub,
}
_CASTS = ("bool", "fp16", "fp32", "int8", "uint8", "int16", "uint16", "int32")


def saturating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert floats to integers: towards zero, into the bounds of the type, NaN to 0."""
    limits = torch.iinfo(dtype)
    whole = x.double().nan_to_num(0.0).trunc_()
    return whole.clamp_(limits.min, limits.max).to(dtype)


def _register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @op(name)
    def unary(x: Tensor) -> Tensor:
        return function(x)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @op(name)
    def binary(x: Tensor, y: Tensor) -> Tensor:
        broadcast(x, y)
        return function(x, y)


for _name, _function in _UNARY.items():
    _register_unary(_name, _function)
for _name, _of_two in _BINARY.items():
    _register_binary(_name, _of_two)


@op("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """The exact quotient, rounded towards negative infinity, as Python's ``//``."""
    broadcast(x, y)
    if x.is_floating_point():
        return torch.div(x, y, rounding_mode="floor")
    return torch.div(x.long(), _divisor(y, "floor_div"), rounding_mode="floor").to(x.dtype)


@op("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """What is left by ``floor_div``: it has the sign of ``y``, as Python's ``%``."""
    broadcast(x, y)
    if x.is_floating_point():
        return torch.remainder(x, y)
    return torch.remainder(x.long(), _divisor(y, "mod")).to(x.dtype)


@op("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """The quotient; of integers towards zero, as the result is declared an integer too."""
    broadcast(x, y)
    if x.is_floating_point():
        return torch.div(x, y)
    return torch.div(x.long(), _divisor(y, "real_div"), rounding_mode="trunc").to(x.dtype)


def _divisor(y: Tensor, name: str) -> Tensor:
    """Return ``y`` in 64 bits, in which the lowest int32 over -1 does not trap."""
    if not bool(y.all()):
        raise ExecutionError(f"{name} divides an integer by zero")
    return y.long()


@op("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    """``x`` to the power of ``y``.

    Raises:
        ExecutionError: An integer has a negative exponent.
    """
    broadcast(x, y)
    if not y.is_floating_point() and bool((y < 0).any()):
        raise ExecutionError("pow raises an integer to a negative power, which is no integer")
    return torch.pow(x, y)


@op("exp2")
def exp2(x: Tensor) -> Tensor:
    """2 to the power of ``x``."""
    if x.is_floating_point():
        return torch.exp2(x)
    return saturating(torch.exp2(x.double()), x.dtype)


@op("sign")
def sign(x: Tensor) -> Tensor:
    """-1, 0 or 1; NaN stays NaN, which torch would make 0."""
    if x.is_floating_point():
        return torch.where(torch.isnan(x), x, torch.sign(x))
    return torch.sign(x)


@op("clip")
def clip(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """``min(max(x, alpha), beta)``."""
    return torch.clamp(x, float(alpha), float(beta))


@op("threshold")
def threshold(x: Tensor, alpha: Tensor) -> Tensor:
    """``max(x, alpha)``."""
    return torch.clamp(x, min=alpha.item())


@op("inverse")
def inverse(x: Tensor, result: TensorType, epsilon: Tensor | None = None) -> Tensor:
    """``1 / (x + epsilon)``."""
    return torch.reciprocal(x + _default(epsilon, 1e-4, result))


@op("log")
def log(x: Tensor, result: TensorType, epsilon: Tensor | None = None) -> Tensor:
    """``log(x + epsilon)``."""
    return torch.log(x + _default(epsilon, 1e-45, result))


@op("rsqrt")
def rsqrt(x: Tensor, result: TensorType, epsilon: Tensor | None = None) -> Tensor:
    """``1 / sqrt(x + epsilon)``."""
    return torch.rsqrt(x + _default(epsilon, 1e-12, result))


def _default(epsilon: Tensor | None, default: float, result: TensorType) -> float:
    """Return the given epsilon or MIL's default, which has the type of ``x``: 1e-12 is 0 in fp16."""
    if epsilon is not None:
        return float(epsilon)
    return float(torch.tensor(default, dtype=result.dtype))


@op("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """Convert to ``dtype``; a wider integer keeps its low bits in a narrower one.

    Raises:
        ExecutionError: MIL casts to no such type.
    """
    if dtype not in _CASTS:
        raise ExecutionError(f"cast knows no type {dtype!r}; it converts to {', '.join(_CASTS)}")
    target = DTYPES[dtype].torch
    if target.is_floating_point:
        return x.float()
    if target is torch.bool:
        return x != 0
    return saturating(x, target) if x.is_floating_point() else x.to(target)
