"""From the IR's ops beyond ATen to Relax: conversions of codes, and calls of the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from qcompile.targets.tvm.kernels.choice import Kernels
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window

Converter = Callable[[fx.Node, Any], Any]


class Converters:
    """Converters for the PyTorch front end of Relax.

    Args:
        constants: Returns the tensor of a constant's node in the program.
        kernels: Returns the kernels for a machine; a float program needs none.
    """

    def __init__(self, constants: Callable[[Any], Tensor], kernels: Callable[[], Kernels]) -> None:
        self.constants, self._kernels = constants, kernels

    @property
    def kernels(self) -> Kernels:
        """What ops on codes become calls of."""
        return self._kernels()

    def table(self) -> dict[str, Converter]:
        """Return a converter by the op's name."""
        return {
            "quantize_per_tensor.default": self._quantize,
            "dequantize_per_tensor.default": self._dequantize,
            "dequantize_per_channel.default": self._dequantize_channels,
            "select.int": self._select,
            "embedding.default": self._embedding,
            "integer_conv2d.default": self._conv,
            "integer_linear.default": self._linear,
            "integer_add.default": self._add,
            "integer_table.default": self._table,
            "integer_global_average.default": self._average,
            "integer_max_pool2d.default": self._max_pool,
            "quantize_channels_last.default": self._quantize_last,
        }

    def _call(self, importer: Any, node: fx.Node, kernel: Any, *arguments: Any) -> Any:
        """Emit a call of a kernel that gives the node's value."""
        name = str(node.target).split(".")[1]
        return _emit_call(importer, name, kernel, arguments, _sizes(node), _dtype(node))

    def _conv(self, node: fx.Node, importer: Any) -> Any:
        x, weight, multiplier, offset, stride, padding, groups, *zero_and_codes = _arguments(node)
        kernel = self.constants(weight)
        rows, columns = kernel.shape[2:]
        size = _sizes(x)[:2], _sizes(x)[2], len(kernel)
        window = Window(*size, (rows, columns), tuple(stride), tuple(padding))
        layer = _Layer(window, groups != 1, self.kernels, *_zero_and_codes(zero_and_codes))
        constants = layer.constants(kernel, *map(self.constants, (multiplier, offset)))
        return self._call(importer, node, layer.kernel(), importer.env[x], *constants)

    def _linear(self, node: fx.Node, importer: Any) -> Any:
        """Return a product of matrices: a pointwise convolution of images of one pixel."""
        from tvm import relax

        x, weight, multiplier, offset, *zero_and_codes = _arguments(node)
        kernel = self.constants(weight)[:, :, None, None]
        features, channels = kernel.shape[:2]
        window = Window((1, 1), channels, features)
        layer = _Layer(window, False, self.kernels, *_zero_and_codes(zero_and_codes))
        constants = layer.constants(kernel, *map(self.constants, (multiplier, offset)))
        emit, rows = importer.block_builder.emit, importer.env[x].ty.shape[0]
        image = emit(relax.op.reshape(importer.env[x], (rows, 1, 1, channels)))
        given, sizes = (image, *constants), (1, 1, features)
        found = _emit_call(importer, "integer_linear", layer.kernel(), given, sizes, _dtype(node))
        return emit(relax.op.reshape(found, (rows, features)))

    def _add(self, node: fx.Node, importer: Any) -> Any:
        a, b, scale_a, scale_b, offset, low, high, dtype = _arguments(node)
        dtypes = _dtype(a), _dtype(b)
        codes = Codes(dtype, low, high)
        kernel = self.kernels.add(_sizes(node), dtypes, (scale_a, scale_b), offset, codes)
        return self._call(importer, node, kernel, importer.env[a], importer.env[b])

    def _table(self, node: fx.Node, importer: Any) -> Any:
        x, entries = _arguments(node)
        kernel = self.kernels.table(_sizes(node), _dtype(x), _dtype(entries))
        constant = _constant(self.constants(entries).numpy())
        return self._call(importer, node, kernel, importer.env[x], constant)

    def _average(self, node: fx.Node, importer: Any) -> Any:
        x, multiplier, offset, low, high, dtype = _arguments(node)
        codes = Codes(dtype, low, high)
        kernel = self.kernels.global_average(_sizes(x), multiplier, offset, codes)
        return self._call(importer, node, kernel, importer.env[x])

    def _max_pool(self, node: fx.Node, importer: Any) -> Any:
        x, size, stride, padding, low, high = _arguments(node)
        channels = _sizes(x)[2]
        window = Window(_sizes(x)[:2], channels, channels, *map(tuple, (size, stride, padding)))
        kernel = self.kernels.maximum(window, Codes(_dtype(x), low, high))
        return self._call(importer, node, kernel, importer.env[x])

    def _quantize_last(self, node: fx.Node, importer: Any) -> Any:
        x, scale, zero_point, low, high, dtype = _arguments(node)
        codes = Codes(dtype, low, high)
        kernel = self.kernels.quantize_channels_last(_sizes(x), scale, zero_point, codes)
        return self._call(importer, node, kernel, importer.env[x])

    def _select(self, node: fx.Node, importer: Any) -> Any:
        """Return one slice; TVM's own converter reads outside of the tensor if the index is negative."""
        from tvm import relax

        x, axis, index = _arguments(node)
        value = importer.env[x]
        axis = axis % len(value.ty.shape)
        size = value.ty.shape[axis]
        start = index if index >= 0 else size + index
        emit = importer.block_builder.emit
        part = emit(relax.op.strided_slice(value, [axis], [start], [start + 1]))
        return emit(relax.op.squeeze(part, [axis]))

    def _embedding(self, node: fx.Node, importer: Any) -> Any:
        """Return rows of a table, NaN for one that it has not; TVM's own converter reads beyond its end.

        A table of codes has no NaN: there it is the last row, and the row of scales that it is multiplied
        by is NaN.
        """
        from tvm import relax

        source, ids = _arguments(node)[:2]
        table, indices = importer.env[source], importer.env[ids]
        mode = "nan" if source.meta["val"].is_floating_point() else "clip"
        return importer.block_builder.emit(relax.op.take(table, indices, axis=0, mode=mode))

    def _quantize(self, node: fx.Node, importer: Any) -> Any:
        from tvm import relax

        x, scale, zero_point, low, high, dtype = _arguments(node)
        op, emit = relax.op, importer.block_builder.emit
        values = emit(op.multiply(importer.env[x], relax.const(1 / float(scale), "float32")))
        shifted = emit(op.add(op.round(values), relax.const(float(zero_point), "float32")))
        limited = op.clip(shifted, float(low), float(high))
        return emit(op.astype(limited, str(dtype).removeprefix("torch.")))

    def _dequantize(self, node: fx.Node, importer: Any) -> Any:
        from tvm import relax

        x, scale, zero_point = _arguments(node)[:3]
        op, emit = relax.op, importer.block_builder.emit
        wide = emit(op.astype(importer.env[x], "float32"))
        steps = op.subtract(wide, relax.const(float(zero_point), "float32"))
        return emit(op.multiply(emit(steps), relax.const(float(scale), "float32")))

    def _dequantize_channels(self, node: fx.Node, importer: Any) -> Any:
        from tvm import relax

        x, scale, zero_point, axis = _arguments(node)[:4]
        op, emit = relax.op, importer.block_builder.emit
        rank = x.meta["val"].dim()
        shape = [-1 if i == axis else 1 for i in range(rank)]
        zeros = self.constants(zero_point).float().reshape(shape).numpy()
        scales = self.constants(scale).float().reshape(shape).numpy()
        wide = emit(op.astype(importer.env[x], "float32"))
        steps = emit(op.subtract(wide, relax.const(zeros)))
        return emit(op.multiply(steps, relax.const(scales)))


def _arguments(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def _dtype(node: Any) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _constant(values: Any) -> Any:
    from tvm import relax

    return relax.const(np.ascontiguousarray(values))


@dataclass(frozen=True)
class _Layer:
    """A convolution's kernel, and its constants as the kernel takes them."""

    window: Window
    is_depthwise: bool
    kernels: Kernels
    zero_point: int
    codes: Codes

    def kernel(self) -> Any:
        return self.kernels.layer(self.window, self.is_depthwise, self.zero_point, self.codes)

    def constants(self, kernel: Tensor, multiplier: Tensor, offset: Tensor) -> list[Any]:
        weight = kernel.numpy()
        sums = (-self.zero_point * weight.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
        numbers = [sums, multiplier.numpy(), offset.numpy()]
        return [_constant(v) for v in self.kernels.constants(weight, self.is_depthwise, numbers)]


def _zero_and_codes(arguments: Sequence[Any]) -> tuple[int, Codes]:
    """Return what ``zero_point, low, high, dtype`` mean."""
    zero_point, low, high, dtype = arguments
    return zero_point, Codes(dtype, low, high)


def _emit_call(
    importer: Any,
    name: str,
    kernel: Any,
    arguments: Sequence[Any],
    sizes: Sequence[int],
    dtype: str,
) -> Any:
    """Emit a call of a kernel whose result is ``[batch, *sizes]``."""
    from tvm import relax

    build = importer.block_builder
    batch = arguments[0].ty.shape[0]
    result = relax.TensorType(relax.ShapeExpr([batch, *sizes]), dtype)
    return build.emit(relax.call_tir(build.add_func(kernel, name), list(arguments), result))


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    """Return the sizes of a value but for the batch."""
    return tuple(int(size) for size in node.meta["val"].shape[1:])
