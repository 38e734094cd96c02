"""An artifact whose outputs are another model's is refused, though each of its values is right by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions, build, parity
from qcompile.compiler.frontend.load import from_module
from qcompile.compiler.ir.errors import GateError


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_outputs_of_another_model_are_refused(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    source = from_module(model, {"input": torch.randn(4, 8)})
    samples = {"input": torch.randn(32, 8).numpy()}
    options = BuildOptions(target="pixel-8", precision=precision, calibrate=samples)
    good = build(source, tmp_path / "good.qc", options)
    assert {gate["gate"] for gate in good.manifest.gates} == {"export", "engine", "engine-outputs"}

    real = parity.engine_outputs

    def stale(*arguments: Any) -> dict[str, torch.Tensor]:
        return {name: value.flip(-1) for name, value in real(*arguments).items()}

    monkeypatch.setattr(parity, "engine_outputs", stale)
    with pytest.raises(GateError, match="the artifact and the quantized graph: "):
        build(source, tmp_path / "stale.qc", options)
    assert not (tmp_path / "stale.qc").exists()
