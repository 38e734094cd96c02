"""The float side of the vision benchmarks: normalized images, and the models as ONNX files.

``python benchmarks/float_vision.py MODEL_FILE WEIGHTS OUTPUT`` exports one model.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

MODELS = ("mobilenet_v2", "resnet20")
MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float32)
OPSET = 20


def load_images(archive_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a CIFAR-10 archive as normalized float32 NCHW, and their labels."""
    with np.load(archive_file) as archive:
        images, labels = archive["image"], archive["label"]
    normalized = (images.astype(np.float32) / 255 - MEAN) / DEVIATION
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), labels


def load_model(model_file: Path, weights: Path) -> Any:
    """Run the model file and return what its ``load`` makes of the weights."""
    spec = importlib.util.spec_from_file_location(model_file.stem, model_file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{model_file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(weights)


def strip_metadata(model: Any) -> None:
    """Drop what the exporter notes for debugging (stack traces, names of modules).

    It is 15 % of a quantized MobileNetV2, and it would count against each peer that keeps it.
    """
    graph = model.graph
    for item in (
        model,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.input,
        *graph.output,
        *graph.initializer,
    ):
        del item.metadata_props[:]
        item.doc_string = ""


def export(model_file: Path, weights: Path, output: Path) -> None:
    """Write the model as one ONNX file with a dynamic batch, batch norms folded."""
    import onnx
    import torch

    program = torch.onnx.export(
        load_model(model_file, weights),
        (torch.zeros(2, 3, 32, 32),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=OPSET,
        optimize=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no program for {model_file}")
    model = program.model_proto
    strip_metadata(model)
    onnx.save(model, output)


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:4]))
