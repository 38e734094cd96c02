"""Runs a graph op by op, reading each constant when an op asks for it and dropping it afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from qcompile.compiler.ir.weights import Weights


@dataclass(frozen=True)
class _Constant:
    name: str


class ConstantReader(fx.Interpreter):
    """An interpreter that holds no constant: one that is stored is loaded for each op that reads it.

    Args:
        module: The graph.
        weights: Its constants.
    """

    def __init__(self, module: fx.GraphModule, weights: Weights) -> None:
        super().__init__(module)
        self.weights = weights

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return what stands for a constant until an op reads it."""
        return _Constant(str(target))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a node's arguments with its constants read."""
        return pytree.tree_map(self._read, super().fetch_args_kwargs_from_env(n))  # type: ignore[no-any-return]

    def _read(self, value: Any) -> Any:
        return self.weights[value.name] if isinstance(value, _Constant) else value
