"""From the IR's ops beyond ATen to Relax: conversions of codes, and calls of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, fx

from qcompile.targets.tvm.kernels import conv, depthwise, elementwise, pool
from qcompile.targets.tvm.kernels.instructions import Instructions
from qcompile.targets.tvm.kernels.parts import Codes
from qcompile.targets.tvm.kernels.shapes import Window
from qcompile.targets.tvm.machine import Machine

Converter = Callable[[fx.Node, Any], Any]


class Converters:
    """Converters for the PyTorch front end of Relax.

    Args:
        constants: Returns the tensor of a constant's node in the program.
        machine: For whom.
    """

    def __init__(self, constants: Callable[[Any], Tensor], machine: Machine) -> None:
        self.constants, self.machine = constants, machine

    @property
    def instructions(self) -> Instructions:
        """What the kernels are written for; a float program needs none."""
        return self.machine.instructions

    def table(self) -> dict[str, Converter]:
        """Return a converter by the op's name."""
        return {
            "quantize_per_tensor.default": self._quantize,
            "dequantize_per_tensor.default": self._dequantize,
            "dequantize_per_channel.default": self._dequantize_channels,
            "select.int": self._select,
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
        from tvm import relax

        name = str(node.target).split(".")[1]
        function = importer.block_builder.add_func(kernel, name)
        first = arguments[0].ty.shape
        shape = relax.ShapeExpr([first[0], *(int(s) for s in node.meta["val"].shape[1:])])
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        info = relax.TensorType(shape, dtype)
        return importer.block_builder.emit(relax.call_tir(function, list(arguments), info))

    def _conv(self, node: fx.Node, importer: Any) -> Any:
        x, weight, multiplier, offset, stride, padding, groups, zero, low, high, dtype = _arguments(
            node
        )
        kernel: Tensor = self.constants(weight)
        window = _window(node, kernel, stride, padding)
        codes = Codes(str(dtype), int(low), int(high))
        factors = [self.constants(f).numpy() for f in (multiplier, offset)]
        build, pack, pad = _layer(groups, self.instructions)
        function = build(window, self.instructions, int(zero), codes)
        return self._layer_call(
            node, importer, importer.env[x], function, kernel, factors, pack, pad
        )

    def _linear(self, node: fx.Node, importer: Any) -> Any:
        from tvm import relax

        x, weight, multiplier, offset, zero, low, high, dtype = _arguments(node)
        kernel = self.constants(weight)[:, :, None, None]
        features, channels = kernel.shape[:2]
        window = Window((1, 1), channels, features)
        codes = Codes(str(dtype), int(low), int(high))
        factors = [self.constants(f).numpy() for f in (multiplier, offset)]
        function = conv.conv(window, self.instructions, int(zero), codes)
        build = importer.block_builder
        rows = importer.env[x].ty.shape[0]
        image = build.emit(relax.op.reshape(importer.env[x], (rows, 1, 1, channels)))
        _, pack, pad = _layer(1, self.instructions)
        name = build.add_func(function, "integer_linear")
        info = relax.TensorType(relax.ShapeExpr([rows, 1, 1, features]), str(dtype))
        constants = _constants(kernel, int(zero), factors, pack, pad)
        found = build.emit(relax.call_tir(name, [image, *constants], info))
        return build.emit(relax.op.reshape(found, (rows, features)))

    def _layer_call(
        self, node: fx.Node, importer: Any, x: Any, function: Any, kernel: Tensor, factors: Any,
        pack: Any, pad: Any,
    ) -> Any:  # fmt: skip
        zero_point = int(_arguments(node)[7])
        constants = _constants(kernel, zero_point, factors, pack, pad)
        return self._call(importer, node, function, x, *constants)

    def _add(self, node: fx.Node, importer: Any) -> Any:
        a, b, scale_a, scale_b, offset, low, high, dtype = _arguments(node)
        dtypes = _dtype(a), _dtype(b)
        codes = Codes(str(dtype), int(low), int(high))
        shape = [int(s) for s in node.meta["val"].shape[1:]]
        kernel = elementwise.add(shape, dtypes, (scale_a, scale_b), offset, codes)
        return self._call(importer, node, kernel, importer.env[a], importer.env[b])

    def _table(self, node: fx.Node, importer: Any) -> Any:
        x, entries = _arguments(node)
        shape = [int(s) for s in node.meta["val"].shape[1:]]
        kernel = elementwise.table(shape, _dtype(x), _dtype(entries))
        constant = _constant(self.constants(entries).numpy())
        return self._call(importer, node, kernel, importer.env[x], constant)

    def _average(self, node: fx.Node, importer: Any) -> Any:
        x, multiplier, offset, low, high, dtype = _arguments(node)
        assert isinstance(x, fx.Node)
        codes = Codes(str(dtype), int(low), int(high))
        height, width, channels = (int(s) for s in x.meta["val"].shape[1:])
        size = height, width, channels
        kernel = pool.global_average(size, self.instructions, multiplier, offset, codes)
        return self._call(importer, node, kernel, importer.env[x])

    def _max_pool(self, node: fx.Node, importer: Any) -> Any:
        x, size, stride, padding, low, high = _arguments(node)
        assert isinstance(x, fx.Node)
        height, width, channels = (int(s) for s in x.meta["val"].shape[1:])
        window = Window((height, width), channels, channels, *map(tuple, (size, stride, padding)))
        codes = Codes(_dtype(x), int(low), int(high))
        kernel = pool.maximum(window, self.instructions, codes)
        return self._call(importer, node, kernel, importer.env[x])

    def _quantize_last(self, node: fx.Node, importer: Any) -> Any:
        x, scale, zero_point, low, high, dtype = _arguments(node)
        assert isinstance(x, fx.Node)
        shape = [int(s) for s in x.meta["val"].shape[1:]]
        codes = Codes(str(dtype), int(low), int(high))
        kernel = elementwise.quantize_channels_last(shape, scale, zero_point, codes)
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
        assert isinstance(x, fx.Node)
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


def _window(node: fx.Node, kernel: Tensor, stride: Any, padding: Any) -> Window:
    x = node.args[0]
    assert isinstance(x, fx.Node)
    height, width, channels = (int(s) for s in x.meta["val"].shape[1:])
    rows, columns = (int(s) for s in kernel.shape[2:])
    size = rows, columns
    return Window((height, width), channels, kernel.shape[0], size, tuple(stride), tuple(padding))


def _layer(groups: Any, instructions: Instructions) -> tuple[Any, Any, Any]:
    """Return the kernel of a convolution, how its weights are packed, and how its numbers are padded."""
    if groups == 1:
        return (
            conv.conv,
            lambda w: conv.pack(w, instructions),
            lambda v: conv.pad_features(v, instructions),
        )
    return depthwise.depthwise, depthwise.pack, lambda v: v


def _constants(kernel: Tensor, zero_point: int, factors: Any, pack: Any, pad: Any) -> list[Any]:
    """Return the constants of a layer as its kernel takes them."""
    weight = kernel.numpy()
    sums = (-zero_point * weight.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
    return [_constant(pack(weight)), *(_constant(pad(v)) for v in (sums, *factors))]
