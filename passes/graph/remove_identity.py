"""Remove what does nothing at inference: dropout, detach, copies, casts to the same dtype, checks of one.

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
    """Replace each use of such a call's result with its input; a copy that a view needs stays.

    A cast leaves behind a check of its input's dtype, which is static: it goes too.
    """

    name = "remove-identity"

    def run(self, graph: Graph) -> int:
        checks = [n for n in graph.calls(aten._assert_tensor_metadata.default) if _is_static(n)]
        for node in checks:
            graph.module.graph.erase_node(node)
        removed = len(checks)
        for node in reversed(graph.calls(*_ALWAYS, *_DROPOUTS, *_IF_SAME)):
            if _does_nothing(node):  # a view that went no longer needs the copy before it
                source = node.args[0]
                assert isinstance(source, fx.Node)
                graph.replace(node, source)
                removed += 1
        return removed


def _is_static(check: fx.Node) -> bool:
    """Return whether a check asks for no sizes and strides, which may be free."""
    return not check.users and all(argument is None for argument in check.args[1:3])


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
