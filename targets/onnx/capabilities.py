"""What ONNX Runtime's CPU engine computes in integers when it reads q/dq pairs, and what it does not.

Source: FORMATS A.7 (made and optimized there, 1.31.1); each entry is checked by a test that looks at
the optimized graph.
"""

from __future__ import annotations

from qcompile.compiler.ir.ops import aten
from qcompile.passes.quantization.integer_ops import MOVES, IntegerOps

INTEGER_OPS = IntegerOps(
    layers=frozenset({aten.conv1d.default, aten.conv2d.default, aten.linear.default}),
    needs_output=frozenset({aten.conv1d.default, aten.conv2d.default}),
    arithmetic=frozenset(
        {
            aten.add.Tensor,
            aten.mul.Tensor,
            aten.cat.default,
            aten.avg_pool2d.default,
            aten.adaptive_avg_pool2d.default,
            aten.sigmoid.default,
            aten.softmax.int,
            aten.leaky_relu.default,
        }
    ),
    products=frozenset({aten.matmul.default, aten.bmm.default}),
    moves=MOVES | {aten.constant_pad_nd.default, aten.upsample_nearest2d.vec},
    unit_range=frozenset({aten.sigmoid.default, aten.softmax.int}),
)

WHY_FLOAT = {
    "gelu": "ONNX Runtime has no integer GELU",
    "layer_norm": "ONNX Runtime has no integer layer normalization",
    "lstm": "ONNX Runtime's integer LSTM takes no q/dq pairs",
    "gru": "ONNX Runtime has no integer GRU",
    "tanh": "ONNX Runtime has no integer tanh",
    "embedding": "a look-up: one row is read a token",
    "conv_transpose2d": "ONNX Runtime has no integer transposed convolution",
    "hardswish": "ONNX Runtime has no integer hard-swish",
    "hardsigmoid": "ONNX Runtime has no integer hard-sigmoid",
    "div": "ONNX Runtime has no integer division",
    "sub": "ONNX Runtime has no integer subtraction",
    "mean": "ONNX Runtime reduces in float, but for global average pooling",
    "softmax": "no integer neighbour: two conversions would cost more than they save",
    "add": "no integer neighbour: two conversions would cost more than they save",
    "mul": "no integer neighbour: two conversions would cost more than they save",
}

ENGINE_INTEGER_OPS = frozenset(
    {
        "QLinearConv", "QLinearAdd", "QLinearMul", "QLinearAveragePool", "QLinearGlobalAveragePool",
        "QLinearConcat", "QLinearSigmoid", "QLinearSoftmax", "QLinearLeakyRelu", "QLinearMatMul",
        "QLinearWhere", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits",
        "ConvInteger", "MatMulInteger", "DynamicQuantizeLSTM",
    }
)  # fmt: skip
ENGINE_MOVES = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape", "Flatten", "Slice", "Pad", "Split",
        "Squeeze", "Unsqueeze", "Shape", "Gather", "Concat", "Expand", "MaxPool", "NhwcMaxPool", "Resize",
        "Cast", "Identity", "Constant", "ConstantOfShape", "GatherND", "ReorderInput", "ReorderOutput",
        "Range",
    }
)  # fmt: skip
