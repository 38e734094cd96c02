"""NNCF's ``quantize_with_accuracy_control``, and what a quantized model computes in float."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from float_vision import OPSET, strip_metadata
from peers_coreml import INPUT

BATCH = 250
Item = tuple[np.ndarray, np.ndarray]
"""An image and its label."""
LAYERS = ("Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "FusedGemm")
INTEGER_LAYERS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")


def accuracy_control(
    float_model: Path,
    output: Path,
    calibration: np.ndarray,
    validation: np.ndarray,
    labels: np.ndarray,
    max_drop: float,
    *,
    tuned: bool = False,
) -> None:
    """Quantize with NNCF, reverting operations until the share of right labels keeps the limit.

    Args:
        float_model: ONNX.
        output: The quantized model.
        calibration: Images.
        validation: Images on which operations are ranked and reverted.
        labels: Of them.
        max_drop: Percentage points.
        tuned: With the options that were best in onnxruntime; see ``peers_int8.quantize_nncf_tuned``.
    """
    import nncf
    import onnx

    def validate(model: Any, items: Iterable[Item]) -> tuple[float, list[float]]:
        images, wanted = (np.stack(part) for part in zip(*items, strict=True))
        right = logits(model.SerializeToString(), images).argmax(1) == wanted
        return 100 * float(right.mean()), (100.0 * right).tolist()

    found = nncf.quantize_with_accuracy_control(
        onnx.load(float_model),
        nncf.Dataset(list(calibration), lambda image: {INPUT: image[None]}),
        nncf.Dataset(list(zip(validation, labels, strict=True))),
        validate,
        max_drop=max_drop,
        drop_type=nncf.DropType.ABSOLUTE,
        subset_size=len(calibration),
        **(tuned_options() if tuned else {}),
    )
    onnx.save(found, output)


def tuned_options() -> dict[str, Any]:
    """Return asymmetric activations, one range a tensor, from the smallest to the largest value seen."""
    from nncf import AdvancedQuantizationParameters, QuantizationPreset
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        activations_quantization_params=QuantizationParameters(per_channel=False),
    )
    return {"preset": QuantizationPreset.MIXED, "advanced_quantization_parameters": advanced}


def export_module(module: Any, shape: tuple[int, ...], output: Path) -> None:
    """Write a network as one ONNX file with a free batch, as ``float_vision.export`` does."""
    import onnx
    import torch

    program = torch.onnx.export(
        module, (torch.zeros(shape),), dynamo=True, input_names=[INPUT], output_names=["logits"],
        dynamic_shapes=[{0: torch.export.Dim("batch")}], opset_version=OPSET, verbose=False,
    )  # fmt: skip
    assert program is not None
    strip_metadata(program.model_proto)
    onnx.save(program.model_proto, output)


def logits(model: Path | bytes, images: np.ndarray) -> np.ndarray:
    """Return what a model gives for images, on all cores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return np.concatenate([session.run(None, {INPUT: batch})[0] for batch in batches])


def float_inputs(file: Path) -> tuple[int, int]:
    """Return how many layers of a file read no quantized input or weight, and how many layers there are."""
    import onnx

    graph = onnx.load(file).graph
    writers = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]

    def decoded(name: str) -> bool:
        while (node := writers.get(name)) and node.op_type in ("Flatten", "Reshape", "Transpose"):
            name = node.input[0]
        return node is not None and node.op_type == "DequantizeLinear"

    both = [node for node in layers if all(decoded(name) for name in node.input[:2])]
    return len(layers) - len(both), len(layers)


def float_in_engine(file: Path, folder: Path) -> tuple[int, int]:
    """Return how many layers onnxruntime computes in float, and how many layers it has."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    ops = [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
    floats, integers = (sum(op in kinds for op in ops) for kinds in (LAYERS, INTEGER_LAYERS))
    return floats, floats + integers
