"""The model file that ``int8_vision.py`` compiles: MODEL_FILE and WEIGHTS come from the environment.

``BENCHMARK_MODEL`` names a file with ``load(weights)``; its weights lie beside it.
"""

import os
from pathlib import Path

import torch
from float_vision import load_model
from torch import Tensor, nn


def model() -> nn.Module:
    """Return the network with its weights."""
    file = Path(os.environ["BENCHMARK_MODEL"])
    module: nn.Module = load_model(file, file.with_suffix(".safetensors"))
    return module


def inputs() -> dict[str, Tensor]:
    """Return two images."""
    return {"image": torch.zeros(2, 3, 32, 32)}


def dynamic_shapes() -> dict[str, dict[int, object]]:
    """Leave the batch free."""
    return {"image": {0: torch.export.Dim("batch", min=1, max=1024)}}
