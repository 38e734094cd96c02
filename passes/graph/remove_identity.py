"""Remove what does nothing at inference: dropout, identity, detach, copies, casts to the same dtype.

Before:  d = dropout(x, 0.5, False);  y = linear(d, w)
After:   y = linear(x, w)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

_ALWAYS = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.detach_.default,
    aten.lift_fresh_copy.default,
)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default)
_IF_SAME = (
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.to.device,
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
)


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Replace each use of such a call's result with its input; a copy that a view needs stays."""

    name = "remove-identity"

    def run(self, graph: Graph) -> int:
        removed = [n for n in graph.calls(*_ALWAYS, *_DROPOUTS, *_IF_SAME) if _does_nothing(n)]
        for node in removed:
            source = node.args[0]
            assert isinstance(source, fx.Node)
            graph.replace(node, source)
        return len(removed)


def _does_nothing(node: fx.Node) -> bool:
    if node.target in _ALWAYS:
        return not any(user.target == aten.view.default for user in node.users)
    if node.target in _DROPOUTS:
        return not node.args[2]
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    same_shape = [str(s) for s in before.shape] == [str(s) for s in after.shape]
    return same_shape and before.dtype == after.dtype
