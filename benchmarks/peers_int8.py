"""What the field offers for INT8: one function a peer, from a float ONNX file to a quantized one.

Each runs in its own process (``python benchmarks/peers_int8.py NAME FLOAT CALIBRATION OUTPUT``), so
that its build time and its peak memory are its own. All get the same images and quantize weights
per channel.
"""

import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

INPUT = "image"
BATCH = 64

Quantize = Callable[[Path, np.ndarray, Path], None]


def batch_reader(calibration: np.ndarray) -> Any:
    """Return a CalibrationDataReader in equal batches: onnxruntime's histograms stack them."""
    from onnxruntime.quantization import CalibrationDataReader

    batches = iter(calibration.reshape(-1, min(BATCH, len(calibration)), *calibration.shape[1:]))

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def quantize_ort(
    float_onnx: Path, calibration: np.ndarray, output: Path, *, method: str, **extra: Any
) -> None:
    """Quantize as onnxruntime advises for x86 with VNNI: pre-processed, QDQ, U8S8, full range."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(float_onnx, prepared)
        quantize_static(
            prepared,
            output,
            batch_reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options=extra,
        )


def quantize_nncf(float_onnx: Path, calibration: np.ndarray, output: Path, **options: Any) -> None:
    """Quantize with NNCF, which takes the images one by one and corrects biases."""
    import nncf
    import onnx

    dataset = nncf.Dataset(list(calibration), lambda image: {INPUT: image[None]})
    onnx.save(
        nncf.quantize(onnx.load(float_onnx), dataset, subset_size=len(calibration), **options),
        output,
    )


def quantize_nncf_mixed(float_onnx: Path, calibration: np.ndarray, output: Path) -> None:
    """Quantize with NNCF's asymmetric activations."""
    from nncf import QuantizationPreset

    quantize_nncf(float_onnx, calibration, output, preset=QuantizationPreset.MIXED)


def quantize_nncf_tuned(
    float_onnx: Path, calibration: np.ndarray, output: Path, *, bias_correction: bool = True
) -> None:
    """Quantize with the NNCF options that were best here in onnxruntime.

    Its default range (the mean of each image's minimum and maximum) clips too much on these models,
    and its default of per-channel activations before a depthwise convolution is not fused by
    onnxruntime. Its bias correction helps MobileNetV2 (SQNR) and harms ResNet-20.
    """
    from nncf import AdvancedQuantizationParameters, QuantizationPreset
    from nncf.quantization.advanced_parameters import QuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    advanced = AdvancedQuantizationParameters(
        activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        activations_quantization_params=QuantizationParameters(per_channel=False),
        disable_bias_correction=not bias_correction,
    )
    quantize_nncf(
        float_onnx,
        calibration,
        output,
        preset=QuantizationPreset.MIXED,
        advanced_parameters=advanced,
    )


PEERS: dict[str, Quantize] = {
    "ort-minmax": functools.partial(quantize_ort, method="MinMax"),
    "ort-entropy": functools.partial(quantize_ort, method="Entropy"),
    "ort-percentile": functools.partial(quantize_ort, method="Percentile"),
    "ort-percentile-asym": functools.partial(
        quantize_ort, method="Percentile", CalibTensorRangeSymmetric=False
    ),
    "nncf": quantize_nncf,
    "nncf-mixed": quantize_nncf_mixed,
    "nncf-tuned": quantize_nncf_tuned,
    "nncf-tuned-nobc": functools.partial(quantize_nncf_tuned, bias_correction=False),
}


def main(arguments: list[str]) -> None:
    """Run one peer: NAME FLOAT CALIBRATION OUTPUT."""
    name, float_onnx, calibration, output = arguments
    with np.load(calibration) as archive:
        images = archive[INPUT]
    PEERS[name](Path(float_onnx), images, Path(output))


if __name__ == "__main__":
    main(sys.argv[1:])
