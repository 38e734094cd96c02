"""What a file takes while it runs in llama.cpp: asked of a process of its own, without any weights.

A file with all names, shapes and types, whose numbers were never written, loads as any other: its zeros take
no place on disk. Of it llama.cpp says what its buffers would take, and computes as fast as with weights.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qcompile.runtime.errors import BundleError
from qcompile.runtime.llama.context import BATCH
from qcompile.targets.gguf.container import header, predicted_bytes
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.planning import planned_tensors
from qcompile.targets.options import BlockOptions
from qcompile.targets.plans import EngineMemory

PROGRAM = "qcompile.runtime.llama.footprint"
TOKENS = 48
"""That are timed, at most."""
PADDING = 256
"""Tokens: llama.cpp's caches are multiples of it."""
COPIES = 1.5
"""Of what an operator works in: it grows in steps, and the step before is not always given back."""
SPREAD = 1 << 20
"""Bytes by which a process may hold more than another that did the same."""
HALF = 2
"""Bytes of float16."""


def engine_options(blocks: BlockOptions) -> dict[str, Any]:
    """Return the engine's options, part of what is verified; a quantized cache needs the fused kernel."""
    fused = blocks.kv_type == "q8_0"
    return {"flash_attention": fused, "kv_type": blocks.kv_type, "repack": False}


def write_empty(layout: Layout, file: Path) -> None:
    """Write a file whose weights are all zero and take no place on disk."""
    fields, tensors = layout.fields(), planned_tensors(layout)
    with file.open("wb") as stream:
        stream.write(header(fields, tensors))
        stream.truncate(predicted_bytes(fields, tensors))


def engine_memory(layout: Layout, options: Mapping[str, Any], context: int) -> EngineMemory:
    """Return what llama.cpp holds besides the file, at most, when so many tokens are in its context.

    Raises:
        BundleError: llama.cpp does not say it.
    """
    with TemporaryDirectory(prefix="qcompile-") as folder:
        file = Path(folder) / "empty.gguf"
        write_empty(layout, file)
        said = _ask([file], options, "--context", str(context), "--sizes")
    compute = said["compute"] + said["output"] + _working_space(layout, context)
    return EngineMemory(said["kv"], compute, said["engine"] + SPREAD)


def measured_memory(file: Path, options: Mapping[str, Any], context: int) -> int:
    """Return the largest memory of a process that reads a whole context.

    Raises:
        BundleError: llama.cpp cannot.
    """
    return int(_ask([file], options, "--context", str(context), "--fill")["peak"])


def milliseconds(files: Sequence[Path], options: Mapping[str, Any]) -> list[float]:
    """Return the median time of a token with each file, on all cores.

    Raises:
        BundleError: llama.cpp cannot.
    """
    threads = str(os.cpu_count() or 1)
    found: list[float] = _ask(files, options, "--tokens", str(TOKENS), "--threads", threads)
    return found


def empty_milliseconds(layouts: Sequence[Layout], options: Mapping[str, Any]) -> list[float]:
    """Return the median time of a token with each layout; the better of two, in order and in reverse.

    Raises:
        BundleError: llama.cpp cannot.
    """
    with TemporaryDirectory(prefix="qcompile-") as folder:
        files = [Path(folder) / f"{number}.gguf" for number in range(len(layouts))]
        for layout, file in zip(layouts, files, strict=True):
            write_empty(layout, file)
        found = milliseconds([*files, *reversed(files)], options)
    return [min(a, b) for a, b in zip(found, reversed(found), strict=True)][: len(files)]


def _working_space(layout: Layout, context: int) -> int:
    """Return bytes in which operators round activations: not among the buffers that llama.cpp tells of.

    The largest are those of a product with attention's probabilities, and of one with the widest matrix; the
    values are in float16 or smaller then (``ggml_graph_plan`` in ggml-cpu.c).
    """
    fields = layout.fields()
    heads = int(fields[f"{layout.architecture.name}.attention.head_count"])
    tokens, cells = min(BATCH, context), -(-context // PADDING) * PADDING
    widest = max(tensor.shape[-1] for tensor in layout.tensors)
    return int(COPIES * HALF * tokens * max(heads * cells, widest))


def _ask(files: Sequence[Path], options: Mapping[str, Any], *given: str) -> Any:
    """Run the program that measures.

    Raises:
        BundleError: It fails; says why.
    """
    command = [sys.executable, "-m", PROGRAM, *map(str, files), "--options", json.dumps(options)]
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BundleError(f"what the model takes cannot be measured in llama.cpp: {lines[-1]}")
    return json.loads(done.stdout)
