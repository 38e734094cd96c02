"""Language models of one format share folding, statistics and blocks, whatever the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qcompile.compiler.driver import BuildOptions as Options
from qcompile.compiler.driver import Bundle, build
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.stages.cache import StageCache
from qcompile.passes.quantization import fold_input_scales, quantize_blocks

pytest.importorskip("llama_cpp")
Calibrated = Callable[..., Options]


def contents(folder: Path) -> dict[str, bytes]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def test_bytes_with_and_without_a_cache(
    language_bundle: Bundle,
    tiny_source: Source,
    calibrated: Calibrated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = StageCache(tmp_path / "cache")
    cold = build(tiny_source, tmp_path / "cold.qc", calibrated(), stages=cache)
    assert contents(cold.path) == contents(language_bundle.path)
    assert cache.hits == []
    for module in (fold_input_scales, quantize_blocks):
        monkeypatch.setattr(module, "Walk", None)  # nothing is looked at again
    warm = build(tiny_source, tmp_path / "warm.qc", calibrated(), stages=cache)
    assert contents(warm.path) == contents(language_bundle.path)
    assert set(cache.hits) == {"fold-input-scales", "quantize-blocks"}


def test_another_format_finds_nothing(
    tiny_source: Source, calibrated: Calibrated, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path / "cache")
    build(tiny_source, tmp_path / "a.qc", calibrated(precision="q4_0"), stages=cache)
    build(tiny_source, tmp_path / "b.qc", calibrated(precision="q8_0"), stages=cache)
    assert cache.hits == []
