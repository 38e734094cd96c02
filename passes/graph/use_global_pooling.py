"""Spell a mean over all positions of an image as global average pooling, which engines have in int8.

Before:  y = mean(x, [2, 3])
After:   p = adaptive_avg_pool2d(x, [1, 1]);  y = flatten(p, 1)

Also an ``avg_pool2d`` whose window is the whole image. (FORMATS A.7: ONNX Runtime keeps ReduceMean float.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from qcompile.compiler.ir.graph import Graph, is_dynamic
from qcompile.compiler.ir.ops import aten
from qcompile.passes.base import Pass

POOL = aten.adaptive_avg_pool2d.default


@dataclass(frozen=True)
class UseGlobalPooling(Pass):
    """Rewrite means and average pools of ``[N, C, H, W]`` over all of ``H`` and ``W``."""

    name = "use-global-pooling"

    def run(self, graph: Graph) -> int:
        means = [n for n in graph.calls(aten.mean.dim) if _over_image(n)]
        for node in means:
            with graph.before(node):
                new = graph.add_call(POOL, node.args[0], [1, 1])
                if not (len(node.args) > 2 and node.args[2]):
                    new = graph.add_call(aten.flatten.using_ints, new, 1)
            graph.replace(node, new)
        pools = [n for n in graph.calls(aten.avg_pool2d.default) if _whole_window(n)]
        for node in pools:
            with graph.before(node):
                graph.replace(node, graph.add_call(POOL, node.args[0], [1, 1]))
        return len(means) + len(pools)


def _image(node: fx.Node) -> Tensor | None:
    source = node.args[0]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    return value if isinstance(value, Tensor) and value.dim() == 4 else None


def _over_image(node: fx.Node) -> bool:
    if (value := _image(node)) is None or node.kwargs.get("dtype") is not None:
        return False
    dims = sorted(int(d) % 4 for d in node.args[1])  # type: ignore[union-attr, arg-type]
    return dims == [2, 3] and not is_dynamic(value.shape[1])


def _whole_window(node: fx.Node) -> bool:
    if (value := _image(node)) is None or any(is_dynamic(s) for s in value.shape[2:]):
        return False
    window = list(node.args[1]) * 2  # type: ignore[arg-type]
    padding = node.args[3] if len(node.args) > 3 else 0
    unpadded = padding in (0, [0], [0, 0], (0, 0))
    default = len(node.args) < 7 or node.args[6] is None
    return window[:2] == [int(s) for s in value.shape[2:]] and unpadded and default
