"""An imatrix file <-> importances of the graph's weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from qcompile.compiler.ir.errors import CalibrationError
from qcompile.targets.gguf.imatrix import check_fits, read_imatrix
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized

NOT_COLLECTED = ("token_embd.weight", "output.weight")
"""llama-imatrix leaves them out, and llama-quantize rounds them without."""


def collected(layout: Layout) -> dict[str, GgufTensor]:
    """Return the tensors that llama-imatrix looks at, by name: what is quantized, in the layers."""
    return {
        t.name: t
        for t in layout.tensors
        if not never_quantized(t.name, t.shape) and t.name not in NOT_COLLECTED
    }


def importances(layout: Layout, file: Path) -> dict[str, Tensor]:
    """Return ``E[x^2]`` of each input of each weight, by the weight's name in the graph.

    Raises:
        CalibrationError: The file is damaged, or of another model, with other experts for one.
    """
    imatrix = read_imatrix(file)
    wanted = collected(layout)
    check_fits(imatrix, {name: t.shape[-1] for name, t in wanted.items()}, file.name)
    found: dict[str, Tensor] = {}
    for name, tensor in wanted.items():
        weights = torch.from_numpy(imatrix.weights(name, tensor.shape[-1])).float()
        if len(weights) not in (1, len(tensor.sources)):
            raise CalibrationError(
                f"{file.name} is of another model: {name} has {len(tensor.sources)} matrices, and it knows "
                f"{len(weights)}; make one from this model (qcompile imatrix), or give --calibrate instead"
            )
        found |= dict(zip(tensor.sources, weights.expand(len(tensor.sources), -1), strict=True))
    return found
