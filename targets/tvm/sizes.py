"""Free sizes: what PyTorch knows of them, said to Relax where its own inference loses it.

Two sums of the same free size are one symbol in PyTorch's program and may be two expressions in Relax, whose
ops then know the rank of their result and no size; later ops refuse that. ``match_cast`` states the sizes,
and the library checks them when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils._sympy.functions import FloorDiv

from qcompile.targets.tvm.tools import refusal

Converter = Callable[[fx.Node, Any], Any]


def stating(names: Iterable[str]) -> dict[str, Converter]:
    """Return converters that do what TVM's own do, and state the sizes of results that Relax lost."""
    return {**{name: partial(_convert, name) for name in names}, "slice.Tensor": _slice}


def is_free(graph: fx.Graph) -> bool:
    """Whether a size of an input is not fixed."""
    inputs = (node.meta.get("val") for node in graph.find_nodes(op="placeholder"))
    return any(isinstance(v, Tensor) and not _is_fixed(v) for v in inputs)


def _is_fixed(value: Tensor) -> bool:
    return all(isinstance(size, int) for size in value.shape)


def _convert(name: str, node: fx.Node, importer: Any) -> Any:
    from tvm import relax

    found = importer.create_convert_map()[name](node)
    value = node.meta.get("val")
    is_tensor = isinstance(getattr(found, "ty", None), relax.TensorType)
    if not is_tensor or not isinstance(value, Tensor) or _is_fixed(value):
        return found
    sizes = [_expression(size, _symbols(node, importer)) for size in value.shape]
    if _says(found, sizes):
        return found
    stated = relax.TensorType(relax.ShapeExpr(sizes), found.ty.dtype)
    return importer.block_builder.match_cast(found, stated)


def _slice(node: fx.Node, importer: Any) -> Any:
    """Return a slice of the size that PyTorch knows.

    Relax would write what is left of the axis, ``min(length, 512)``, and no pass takes that for ``length``.
    """
    from tvm import relax

    given: tuple[Any, ...] = (*node.args, *(None, 0, None, None, 1)[len(node.args) :])
    x, axis, start, _, step = given
    first = 0 if start is None else start
    if not isinstance(first, int) or first < 0 or not isinstance(step, int):
        return _convert("slice.Tensor", node, importer)
    value: Tensor = node.meta["val"]
    axis = axis % value.dim()
    last = first + _expression(value.shape[axis], _symbols(node, importer)) * step
    arguments = importer.env[x], [axis], [first], [last], [step]
    return importer.block_builder.emit(relax.op.strided_slice(*arguments, assume_inbound=True))


def _says(found: Any, sizes: list[Any]) -> bool:
    """Return whether Relax knows these sizes of a value, and not others that it cannot prove equal."""
    from tvm import relax, sym

    prover = sym.Analyzer()
    return isinstance(found.ty.shape, relax.ShapeExpr) and all(
        prover.can_prove_equal(a, b) for a, b in zip(found.ty.shape.values, sizes, strict=True)
    )


def _symbols(node: fx.Node, importer: Any) -> dict[sympy.Symbol, Any]:
    """Return TVM's variable for each symbol that is a size of an input."""
    found: dict[sympy.Symbol, Any] = {}
    for given in node.graph.find_nodes(op="placeholder"):
        value = given.meta.get("val")
        if isinstance(value, Tensor) and not _is_fixed(value):
            for size, expression in zip(value.shape, importer.env[given].ty.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    found[size.node.expr] = expression
    return found


def _expression(size: Any, symbols: Mapping[sympy.Symbol, Any]) -> Any:
    """Return a size as TVM writes it."""
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    if isinstance(size, (int, sympy.Integer)):
        return int(size)
    if size in symbols:
        return symbols[size]
    parts = [_expression(part, symbols) for part in size.args]
    if isinstance(size, FloorDiv):
        return parts[0] // parts[1]
    if not isinstance(size, (sympy.Add, sympy.Mul)):
        raise refusal("a size follows from free ones in a way that TVM cannot say")
    total = parts[0]
    for part in parts[1:]:
        total = total + part if isinstance(size, sympy.Add) else total * part
    return total
