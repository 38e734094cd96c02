"""What coremltools.optimize offers for Core ML: one entry a row, from a float package to another one.

Its default ``weight_threshold`` is 2048: weights of fewer elements stay float. The second row of a format,
``all weights``, sets it to 0, since qcompile codes small weights too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.targets.coreml.tools import quiet

INPUT = "image"
PEER = "coremltools"
ALL = {"weight_threshold": 0}
INT8 = {"mode": "linear_symmetric", "dtype": "int8", "granularity": "per_channel"}
INT4 = {"mode": "linear_symmetric", "dtype": "int4", "granularity": "per_block", "block_size": 32}
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
PER_TENSOR = {"granularity": "per_tensor"}
SCALES = {"enable_per_channel_scale": True}


@dataclass(frozen=True)
class Peer:
    """One way to compress.

    Args:
        settings: Of ``OpPalettizerConfig`` if they name ``nbits``, else of ``OpLinearQuantizerConfig``.
        activations: Whether activations are quantized before the weights.
    """

    settings: Mapping[str, Any]
    activations: bool = False

    def build(self, package: Path, calibration: np.ndarray, output: Path) -> None:
        """Compress the package at one path and save the result at another.

        Raises:
            RuntimeError: coremltools cannot do it here; says why.
        """
        try:
            with quiet():
                self._build(package, calibration, output)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from error

    def _build(self, package: Path, calibration: np.ndarray, output: Path) -> None:
        import coremltools
        from coremltools.optimize import coreml

        model = coremltools.models.MLModel(str(package), skip_model_load=True)
        if self.activations:
            config = coreml.OptimizationConfig(
                global_config=coreml.OpLinearQuantizerConfig(mode="linear_symmetric")
            )
            samples = [{INPUT: image[None]} for image in calibration]
            model = coreml.linear_quantize_activations(model, config, samples)
        if "nbits" in self.settings:
            chosen, compress = coreml.OpPalettizerConfig, coreml.palettize_weights
        else:
            chosen, compress = coreml.OpLinearQuantizerConfig, coreml.linear_quantize_weights
        config = coreml.OptimizationConfig(global_config=chosen(**self.settings))
        compress(model, config).save(str(output))


def palette(bits: int, **settings: Any) -> dict[str, Any]:
    """Return the settings of a k-means palette."""
    return {"mode": "kmeans", "nbits": bits, **settings}


def pair(settings: Mapping[str, Any]) -> dict[str, Peer]:
    """Return the rows of one format: by default, and with all weights."""
    return {PEER: Peer(settings), f"{PEER}, all weights": Peer({**settings, **ALL})}


PEERS: dict[str, dict[str, Peer]] = {
    "int8": pair(INT8),
    "w8a8": {PEER: Peer(INT8, activations=True)},
    "int4": pair(INT4),
    "palette-6": pair(palette(6, **GROUPS)),
    "palette-6 per tensor": pair(palette(6, **PER_TENSOR)),
    "palette-4": pair(palette(4, **GROUPS)),
    "palette-4 per tensor": pair(palette(4, **PER_TENSOR)),
    "palette-4, channel scales": pair(palette(4, **GROUPS, **SCALES)),
    "palette-4 per tensor, channel scales": pair(palette(4, **PER_TENSOR, **SCALES)),
    "palette-3": {PEER: Peer(palette(3, **GROUPS))},
    "palette-2": {PEER: Peer(palette(2, **GROUPS))},
}
"""By format, then by the row's name."""
