"""From float layers to calls of their kernels in Relax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, fx

from qcompile.targets.tvm.float_layers import FloatLayer
from qcompile.targets.tvm.kernels import float_elementwise, float_pool
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.kernels.vectors import Limits, Vectors
from qcompile.targets.tvm.tools import refusal

Converter = Callable[[fx.Node, Any], Any]


class FloatConverters:
    """Converters for the PyTorch front end of Relax.

    Args:
        constants: Returns the tensor of a constant's node in the program.
        vectors: For whom.
    """

    def __init__(self, constants: Callable[[Any], Tensor], vectors: Vectors) -> None:
        self.constants, self.vectors = constants, vectors

    def table(self) -> dict[str, Converter]:
        """Return a converter by the op's name."""
        return {
            "float_conv2d.default": self._conv,
            "float_linear.default": self._linear,
            "float_add.default": self._add,
            "float_global_average.default": self._average,
            "float_max_pool2d.default": self._max_pool,
            "dequantize_blockwise.default": self._blockwise,
        }

    def _conv(self, node: fx.Node, importer: Any) -> Any:
        layer = FloatLayer.of(node, self.constants)
        x = importer.env[node.args[0]]
        sizes = [x.ty.shape[0], *layer.window.output, layer.window.features]
        return self._call(
            importer, node, layer.kernel(self.vectors), [x, *self._given(layer)], sizes
        )

    def _linear(self, node: fx.Node, importer: Any) -> Any:
        """Return a product of matrices: of all rows, whatever the axes before the last."""
        from tvm import relax

        layer = FloatLayer.of(node, self.constants)
        x, emit = importer.env[node.args[0]], importer.block_builder.emit
        if x.ty.shape is None:
            raise refusal(f"it cannot prove the sizes that {node.args[0]} has")
        before, channels = list(x.ty.shape)[:-1], layer.window.channels
        rows = before[0]
        for size in before[1:]:
            rows = rows * size
        matrix = x if len(before) == 1 else emit(relax.op.reshape(x, [rows, channels]))
        features = layer.window.features
        given = [matrix, *self._given(layer)]
        found = self._call(importer, node, layer.kernel(self.vectors), given, [rows, features])
        return found if len(before) == 1 else emit(relax.op.reshape(found, [*before, features]))

    def _given(self, layer: FloatLayer) -> list[Any]:
        from tvm import relax

        return [relax.const(np.ascontiguousarray(c)) for c in layer.constants(self.vectors)]

    def _add(self, node: fx.Node, importer: Any) -> Any:
        args: list[Any] = list(node.args)
        a, b, low, high = args
        sizes = _sizes(node)
        kernel = float_elementwise.add(sizes, self.vectors, Limits(low, high))
        x, y = importer.env[a], importer.env[b]
        return self._call(importer, node, kernel, [x, y], [x.ty.shape[0], *sizes])

    def _average(self, node: fx.Node, importer: Any) -> Any:
        height, width, channels = _sizes(node.args[0])
        kernel = float_pool.global_average((height, width, channels), self.vectors)
        x = importer.env[node.args[0]]
        return self._call(importer, node, kernel, [x], [x.ty.shape[0], 1, 1, channels])

    def _max_pool(self, node: fx.Node, importer: Any) -> Any:
        args: list[Any] = list(node.args)
        source, size, stride, padding = args
        *image, channels = _sizes(source)
        rest = map(tuple, (size, stride, padding))
        window = Window((image[0], image[1]), channels, channels, *rest)
        kernel = float_pool.maximum(window, self.vectors)
        x = importer.env[source]
        return self._call(importer, node, kernel, [x], [x.ty.shape[0], *window.output, channels])

    def _blockwise(self, node: fx.Node, importer: Any) -> Any:
        """Return decoded weights that no kernel decodes: TVM folds them into a constant."""
        from tvm import relax

        from qcompile.compiler.ir.ops import dequantize_blockwise

        args: list[Any] = list(node.args)
        codes, scale, zero, bits, float_bits = args
        points = None if zero is None else self.constants(zero)
        given = self.constants(codes), self.constants(scale), points, bits, float_bits
        return relax.const(dequantize_blockwise(*given).numpy())

    def _call(
        self,
        importer: Any,
        node: fx.Node,
        kernel: Any,
        arguments: Sequence[Any],
        sizes: Sequence[Any],
    ) -> Any:
        """Emit a call of a kernel that gives float32 values."""
        from tvm import relax

        name, build = str(node.target).split(".")[1], importer.block_builder
        result = relax.TensorType(relax.ShapeExpr(list(sizes)), "float32")
        return build.emit(relax.call_tir(build.add_func(kernel, name), list(arguments), result))


def _sizes(node: Any) -> tuple[int, ...]:
    """Return the sizes of a value but for the batch."""
    return tuple(int(size) for size in node.meta["val"].shape[1:])
