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

    def observers_without(self, keep_float: frozenset[str]) -> InsertObservers:
        """Return what is placed if these weights' layers are float too."""
        return replace(self.observers, keep_float=self.observers.keep_float | keep_float)

    def trial(self, keep_float: frozenset[str], samples: Samples) -> Graph:
        """Return the graph with these weights' layers float and the others in integers.

        Args:
            keep_float: Names of weights.
            samples: To calibrate on.
        """
        graph = self.graph.copy()
        self.observers_without(keep_float).run(graph)
        quick = replace(
            self.quantize, samples=samples, log=QuantizationLog(), rounding="nearest",
            on_progress=lambda share: None,
        )  # fmt: skip
        quick.run(graph)
        _fuse(graph)
        return graph


def _fuse(graph: Graph) -> None:
    """Spare PyTorch what engines spare: weights are decoded once, and a q/dq pair is one kernel."""
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
