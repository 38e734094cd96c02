"""A Core ML package of 1 GiB of weights, written and verified in how much memory?

    python benchmarks/coreml_large.py --folder /a/folder/with/3/GiB/free

Makes a random transformer's weights (float16, in safetensors), compiles it for apple-m2 in fp16 through the
emitter, and compares the saved package with the graph, value by value, in the reference interpreter.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.driver.parity import gates
from qcompile.compiler.frontend.stored import trace_stored
from qcompile.passes.base import run
from qcompile.passes.pipelines import float_pipeline
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.base import find_emitter
from qcompile.targets.device import load_device
from qcompile.targets.order import Order, Recipe

WIDTH, HEAD, WORDS = 1536, 64, 32_000


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, length, 3, WIDTH // HEAD, HEAD)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.softmax(q @ k.transpose(-1, -2) * HEAD**-0.5, -1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A language model's shape, its weights random."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def main() -> int:
    """Build, verify, print what it took; 1 if a gate fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=16)
    options = parser.parse_args()
    with torch.device("meta"):
        module = Transformer(options.blocks).half()
    file = options.folder / f"random_{options.blocks}.safetensors"
    if not file.exists():
        save_random(module, file)
    result = measure(module, file, options.folder / "large")
    print(json.dumps(result, indent=1))
    return 0 if result["passed"] else 1


def save_random(module: nn.Module, file: Path) -> None:
    """Write weights of the size that training leaves, from a seed."""
    torch.manual_seed(0)
    tensors = {}
    for name, value in module.state_dict().items():
        scale = value.shape[-1] ** -0.5 if value.dim() > 1 else 0.02
        offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        tensors[name] = (torch.randn(value.shape) * scale + offset).half()
    save_file(tensors, file)


def measure(module: nn.Module, file: Path, folder: Path) -> dict[str, object]:
    """Return sizes, seconds, peak memory and the gates."""
    folder.mkdir(exist_ok=True)
    emitter, device = find_emitter("coreml"), load_device("apple-m2")
    scheme = emitter.scheme("fp16", device)
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = round(now - start, 1), now

    graph = trace_stored(module, file, {"ids": torch.arange(16)[None]})
    run(graph, float_pipeline())
    run(graph, emitter.passes(Recipe(scheme, None, QuantizationLog())))
    lap("passes")
    emitted = emitter.emit(graph, folder, Order("large", device, scheme))
    lap("emit")
    inputs = emitter.to_engine(graph, graph.inputs)
    rows = emitter.engine_errors(graph, folder, emitted, inputs)
    lap("verify")
    weights = sum(f.stat().st_size for f in (folder / emitted.artifact).rglob("weight.bin"))
    (gate,) = [
        g
        for g in gates({"export": {}, "engine": rows, "total": {}}, 16, None)
        if g["gate"] == "engine"
    ]
    return {
        "weights_gib": round(weights / 2**30, 3),
        "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "values_compared": len(rows),
        "seconds": seconds,
        "gate": gate["message"],
        "passed": gate["passed"],
    }


if __name__ == "__main__":
    sys.exit(main())
