"""How a network is written does not matter: rescaled residual streams, per-channel and per-tensor."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

import qcompile

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.slow


@pytest.fixture
def rescaled(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """Return the example's hooks, its model, and the same function with rescaled streams."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    rescale = importlib.import_module("parametrization").rescale
    hooks = importlib.import_module("mobilenet_v2")
    model = hooks.model()
    return hooks, model, rescale(copy.deepcopy(model), seed=0)


@pytest.mark.parametrize("granularity", ["per-channel", "per-tensor"])
def test_int8_stays_as_good(
    rescaled: tuple[Any, Any, Any], granularity: str, tmp_path: Path
) -> None:
    hooks, model, written_otherwise = rescaled
    images = torch.from_numpy(hooks.calibration()["image"][:64])
    with torch.no_grad():
        expected, found = model(images), written_otherwise(images)
    assert float((expected - found).norm() / expected.norm()) < 1e-6
    bundle = qcompile.compile(
        written_otherwise,
        hooks.inputs(),
        target="x86-avx512-vnni",
        calibration=hooks.calibration(),
        dynamic_shapes=hooks.dynamic_shapes(),
        evaluate=hooks.evaluate,
        output=tmp_path / "rescaled.qc",
        weights=qcompile.WeightOptions(granularity=granularity),
    )
    top1 = bundle.manifest.quality["top1"]
    # 744 images: one is 0.13 points. Peers lose 18 to 54 points on such a network.
    assert abs(top1["after"] - top1["before"]) < 0.7
    total = bundle.manifest.parity["total"]["output"]["sqnr_db"]
    assert total > 30
    assert not bundle.manifest.floats
