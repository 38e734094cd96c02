"""``--max-host-ram`` of language models: refused where it cannot hold, kept where it can."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qcompile.compiler.driver import BuildOptions, build, memory
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.errors import TargetError
from qcompile.passes.calibration.samples import Samples
from qcompile.targets.options import DEFAULT_ACTIVATIONS

pytest.importorskip("transformers")


def samples(count: int, length: int) -> Samples:
    ids = torch.zeros(count, length, dtype=torch.int64)
    return Samples([{"input_ids": ids}], count, "test")


@pytest.fixture
def linear(tiny_source: Source) -> Source:
    return replace(tiny_source, graph=tiny_source.graph.copy())


def test_what_is_left_is_for_activations(linear: Source) -> None:
    given = samples(2, 16)
    least = memory.least(linear.graph, given, feedback=True).total

    def left(limit: int | None) -> int:
        return memory.activation_bytes(linear.graph, given, limit, feedback=True)

    assert left(None) == DEFAULT_ACTIVATIONS
    assert abs(left(least + (1 << 30)) - (1 << 30)) < 64 << 20, (
        "the process may have grown a little"
    )
    with pytest.raises(TargetError, match=r"--max-host-ram 1,000 is less than the [\d,]+ bytes"):
        left(1000)


def test_values_grow_with_the_tokens_and_logits_do_not_count(linear: Source) -> None:
    """The widest value of the model that is computed is a layer's, not the logits'."""
    graph = linear.graph

    def values(count: int, length: int) -> int:
        return memory.least(graph, samples(count, length), feedback=True).values

    shapes = {name: graph.weights.peek(name).shape for name in graph.weights}
    widest = max(
        s[0] for n, s in shapes.items() if len(s) == 2 and "embed" not in n and "lm" not in n
    )
    assert values(4, 32) == 2 * values(2, 32)
    assert values(2, 32) <= 2 * 4 * (4 * 2 * 32 * widest), "three values of four bytes, and masks"
    assert memory.least(graph, None, feedback=True).values == 0


def test_rounding_by_inputs_needs_more(linear: Source) -> None:
    graph = linear.graph
    alone = memory.least(graph, None, feedback=True).step
    nearest = memory.least(graph, samples(1, 8), feedback=False).step
    assert alone <= nearest <= memory.least(graph, samples(1, 8), feedback=True).step


def test_a_limit_that_cannot_hold_is_refused(tiny_source: Source, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    given = BuildOptions(target="gguf", precision="q8_0", max_host_ram=1 << 20)
    with pytest.raises(TargetError) as found:
        build(tiny_source, tmp_path / "x.qc", given)
    assert "\n" not in str(found.value)
    assert list(tmp_path.iterdir()) == []


def run(command: list[str], limit: int) -> tuple[dict[str, Any], int]:
    """Return what a build prints, and the most memory that it held of its own."""
    given = [sys.executable, "-m", "qcompile", *command, "--max-host-ram", str(limit), "--json"]
    with tempfile.TemporaryFile("w+") as output, subprocess.Popen(given, stdout=output) as process:
        most = 0
        while process.poll() is None:
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = re.search(r"RssAnon:\s+(\d+)", status)
                most = max(most, int(found[1]) << 10 if found else 0)
            time.sleep(0.005)
        output.seek(0)
        return json.load(output), most


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel what the process holds")
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_build_stays_below_its_limit(
    checkpoints: ModuleType, tmp_path: Path, calibrated: bool
) -> None:
    """Peak memory of a real process, with a limit that is hardly more than the least."""
    pytest.importorskip("llama_cpp")
    wide = {"hidden_size": 768, "intermediate_size": 3072, "vocab_size": 8192}
    model = checkpoints.random_checkpoint(tmp_path / "model", "llama", num_hidden_layers=1, **wide)
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog. " * 400)
    command = ["build", str(model), "--target", "gguf", "-p", "q4_0", "-o", str(tmp_path / "x")]
    command += ["--calibrate", str(text), "--seq-len", "64"] if calibrated else []

    refused, _ = run(command, 1000)
    (found,) = re.findall(r"less than the ([\d,]+) bytes", refused["error"])
    limit = int(found.replace(",", "")) + (32 << 20)
    built, peak = run(command, limit)
    assert built.get("passed"), built
    assert peak <= limit
