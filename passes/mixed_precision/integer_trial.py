"""A graph with some of its layers in integers, quickly: for trials of which layers stay float.

It is calibrated as it would be in a build, for scales and biases depend on what comes before; but on fewer
samples, and weights are rounded to nearest. What is built in the end is calibrated with all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DEQUANTIZE, QUANTIZE, aten
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.graph.channel_links import LAYERS
from qcompile.passes.quantization.insert_observers import InsertObservers
from qcompile.passes.quantization.quantize import Quantize
from qcompile.passes.quantization.records import QuantizationLog

ELEMENTS = 1 << 20
"""Of a value, on which the error of its codes behind an add is measured; a build takes more of them."""
_ROUNDED = aten.fake_quantize_per_tensor_affine.default
"""One kernel for a q/dq pair, with its values."""


@dataclass(frozen=True)
class Prepared:
    """A build right before it places observers.

    Args:
        graph: The float graph there; nobody changes it.
        observers: What the build places.
        quantize: How it calibrates.
    """

    graph: Graph
    observers: InsertObservers
    quantize: Quantize

    def observers_without(
        self, layers: frozenset[str], coded: frozenset[str] = frozenset()
    ) -> InsertObservers:
        """Return what is placed if these layers are float too; weights in ``coded`` stay in codes."""
        keep_float = self.observers.keep_float | (layers - coded)
        return replace(self.observers, keep_float=keep_float, weights_alone=coded)

    def trial(
        self, layers: frozenset[str], samples: Samples, coded: frozenset[str] = frozenset()
    ) -> Graph:
        """Return the graph with these weights' layers float and the others in integers.

        Args:
            layers: Names of weights.
            samples: To calibrate on.
            coded: Those of the layers whose weights are in codes all the same.
        """
        graph = self.graph.copy()
        self.observers_without(layers, coded).run(graph)
        quick = replace(
            self.quantize, samples=samples, log=QuantizationLog(), rounding="nearest",
            elements=ELEMENTS, on_progress=lambda share: None,
        )  # fmt: skip
        quick.run(graph)
        return fused(graph)


def fused(graph: Graph) -> Graph:
    """Return the graph without what engines spare: weights are decoded, and a q/dq pair is one kernel."""
    graph = graph.copy()
    for layer in graph.calls(*LAYERS):
        weight = layer.args[1]
        if isinstance(weight, fx.Node) and weight.op != "get_attr" and _is_constant(weight):
            with graph.before(layer):
                layer.update_arg(
                    1, graph.add_constant(f"{layer.name}_decoded", _value(graph, weight))
                )
    for node in graph.calls(DEQUANTIZE):
        codes = node.args[0]
        if (
            isinstance(codes, fx.Node)
            and codes.target == QUANTIZE
            and codes.args[1:] == node.args[1:]
        ):
            scale, zero, low, high, _ = node.args[1:]
            with graph.before(node):
                new = graph.module.graph.call_function(
                    _ROUNDED, (codes.args[0], scale, zero, low, high)
                )
            new.meta["val"] = node.meta["val"]  # there is no meta kernel that would infer it
            graph.replace(node, new)
    graph.erase_unused()
    return graph


def _is_constant(node: fx.Node) -> bool:
    """Return whether a node computes from constants alone."""
    if node.op == "get_attr":
        return True
    return node.op == "call_function" and all(map(_is_constant, node.all_input_nodes))


def _value(graph: Graph, node: fx.Node) -> Any:
    """Return what a node computes from constants."""
    if node.op == "get_attr":
        return graph.weights[str(node.target)]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _value(graph, n))
    assert callable(node.target)
    return node.target(*args, **kwargs)
