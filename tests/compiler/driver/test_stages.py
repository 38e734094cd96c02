"""A build that finds its stages in a cache gives the bytes of one that computes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qcompile.compiler.driver import BuildOptions, build
from qcompile.compiler.frontend.load import Source, from_module
from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.passes.quantization import quantize


class Residual(nn.Module):
    """Convolutions around a sum, a table, and a softmax: constants, ranges and codes of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.table, self.last = nn.Embedding(64, 16), nn.Linear(16, 8)

    def forward(self, image: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        found = self.first(image).relu()
        found = (found + self.second(found)).relu().mean((2, 3))
        return self.last(found + self.table(word)).softmax(-1)


@pytest.fixture(scope="module")
def source() -> Source:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs = {"image": torch.randn(1, 3, 8, 8), "word": torch.zeros(1, dtype=torch.int64)}
    return from_module(model, inputs)


@pytest.fixture(scope="module")
def samples() -> dict[str, Any]:
    random = np.random.default_rng(0)
    images = random.standard_normal((16, 3, 8, 8), dtype=np.float32)
    return {"image": images, "word": random.integers(0, 64, 16)}


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize(
    ("target", "precision"),
    [("pixel-8", "int8"), ("x86-avx2", "w8a16"), ("apple-m4", "palette-2"), ("apple-m4", "w8a8")],
)
def test_bytes_with_and_without_a_cache(
    source: Source,
    samples: dict[str, Any],
    target: str,
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = BuildOptions(target=target, precision=precision, calibrate=samples)

    def made(name: str, stages: StageCache) -> dict[str, bytes]:
        build(source, tmp_path / name, options, stages=stages)
        return content(tmp_path / name)

    cache = StageCache(tmp_path / "cache")
    alone, cold = made("alone.qc", NO_CACHE), made("cold.qc", cache)
    assert cold == alone
    assert cache.hits == []
    converter = "coreml" if target.startswith("apple") else "onnx"
    assert set(cache.misses) - {"channel-statistics"} == {"quantize", converter}
    monkeypatch.setattr(quantize, "Walk", None)  # nothing is decided again
    assert made("warm.qc", cache) == alone
    assert sorted(cache.hits) == sorted(cache.misses)


def test_devices_of_one_format_share_and_others_do_not(
    source: Source, samples: dict[str, Any], tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    expected = {"pixel-8": [], "galaxy-s24": ["quantize", "onnx"], "x86-avx2": []}
    for target, hits in expected.items():
        options = BuildOptions(target=target, precision="int8", calibrate=samples)
        cache.hits.clear()
        build(source, tmp_path / f"{target}.qc", options, stages=cache)
        assert cache.hits == hits, target


@pytest.mark.parametrize(
    "changed",
    [{"rounding": "nearest"}, {"num_samples": 8}, {"keep_float": frozenset(["last.weight"])}],
)
def test_what_a_stage_depends_on_is_in_its_key(
    source: Source, samples: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    given: dict[str, Any] = {"target": "pixel-8", "precision": "int8", "calibrate": samples}
    build(source, tmp_path / "a.qc", BuildOptions(**given), stages=cache)
    build(source, tmp_path / "b.qc", BuildOptions(**given, **changed), stages=cache)
    assert not {"quantize", "onnx"} & set(cache.hits)
    build(source, tmp_path / "alone.qc", BuildOptions(**given, **changed))
    assert content(tmp_path / "b.qc") == content(tmp_path / "alone.qc")
