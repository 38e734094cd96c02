"""Functions that compute free sizes, made equal from run to run.

``VMShapeLower`` writes one store for each size, in the order of a table that is keyed by addresses.
"""

from __future__ import annotations

from typing import Any

from qcompile.targets.tvm.tools import load_tvm

NAME = "shape_func"


def in_order() -> Any:
    """Return the pass that sorts the stores of shape functions by what they store to."""
    tvm = load_tvm()

    def run(module: Any, context: Any) -> Any:
        for symbol, function in module.functions_items():
            if symbol.name_hint.startswith(NAME):
                module[symbol] = _sorted(function)
        return module

    return tvm.transform.module_pass(run, opt_level=0)


def _sorted(function: Any) -> Any:
    """Return a function whose stores, none of which reads what another one stores, are in order."""
    tirx = load_tvm().tirx
    body = function.body
    if not isinstance(body, tirx.SeqStmt):
        return function
    stores = sorted(body.seq, key=lambda store: int(store.indices[0]))
    return function.with_body(tirx.SeqStmt(stores))
