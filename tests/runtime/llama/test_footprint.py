"""What a model takes while it runs, against what llama.cpp allocates and what follows from its sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qcompile.runtime.errors import BundleError
from qcompile.runtime.llama import footprint
from qcompile.runtime.llama.context import Context, Options
from qcompile.runtime.llama.library import sizes
from qcompile.runtime.llama.model import Model

LAYERS, KV_HEADS, HEAD = 8, 2, 64
"""Of the test model."""


def measured(file: Path, *given: str) -> Any:
    command = [sys.executable, "-m", "qcompile.runtime.llama.footprint", str(file), *given]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_lines_of_the_log() -> None:
    """As two caches of one model tell of themselves; other lines are nothing."""
    lines = [
        "llama_kv_cache: size =    4.00 MiB (  1024 cells,   8 layers,  1/1 seqs), K (f16):    2.00 MiB",
        "llama_kv_cache_iswa: size =    1.50 MiB (  1024 cells,   8 layers)",
        "llama_context:        CPU  output buffer size =     0.02 MiB",
        "sched_reserve:        CPU compute buffer size =    13.01 MiB",
        "load_tensors:   CPU_Mapped model buffer size =     4.44 MiB",
    ]
    found = footprint.buffers(lines)

    assert found["kv"] == 5.5 * 2**20
    assert found["output"] == round(0.02 * 2**20)
    assert found["compute"] == round(13.01 * 2**20)


@pytest.mark.parametrize(("kv_type", "bits"), [("f16", 16), ("f32", 32), ("q8_0", 8.5)])
def test_sizes_without_weights(language_gguf: Path, kv_type: str, bits: float) -> None:
    """Keys and values of a context, of each layer: the cache that a real load allocates as well."""
    given = {"kv_type": kv_type, "flash_attention": kv_type == "q8_0"}
    said = measured(language_gguf, "--context", "500", "--sizes", "--options", json.dumps(given))
    expected = 512 * LAYERS * 2 * KV_HEADS * HEAD * bits / 8
    model = Model(language_gguf)
    room = Context(model, Options.of(given), 500)
    real = footprint.buffers(sizes())
    del room

    assert said["kv"] == pytest.approx(expected, abs=0.01 * 2**20)
    assert {kind: said[kind] for kind in real} == real
    assert said["compute"] > 512 * 4096  # activations of 512 tokens, at least
    assert said["engine"] < 200 * 2**20  # without 29 MB of weights and without torch


def test_a_quantized_cache_needs_the_fused_kernel() -> None:
    with pytest.raises(BundleError, match="q8_0 needs flash_attention"):
        Options.of({"kv_type": "q8_0"})


def test_times_and_the_peak(language_gguf: Path) -> None:
    times = measured(language_gguf, "--tokens", "8")
    small, large = (
        measured(language_gguf, "--context", str(n), "--fill", "--options", '{"kv_type": "f32"}')[
            "peak"
        ]
        for n in (64, 1024)
    )

    assert len(times) == 1
    assert 0 < times[0] < 1000
    assert small > language_gguf.stat().st_size  # mapped, and all of it was read
    cache = (1024 - 256) * LAYERS * 2 * KV_HEADS * HEAD * 4
    assert large - small > cache


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llama_cpp")
    file = tmp_path / "a.gguf"
    file.write_bytes(b"nothing")

    assert footprint.main([str(file), "--sizes"]) == 2
    assert "is no GGUF file" in capsys.readouterr().err
