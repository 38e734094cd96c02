"""fold-input-scales: the function stays, and outliers of norms cost nothing once they are folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import run
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization import fold_input_scales
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.fold_input_scales import FoldInputScales
from qcompile.passes.quantization.input_scales import Choice
from qcompile.passes.quantization.quantize_blocks import QuantizeBlocks
from qcompile.passes.quantization.records import QuantizationLog


class GatedLayers(nn.Module):
    """A norm, gate and up, and down, as language models have them.

    Args:
        width: Of the input.
        inner: Of what is between.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.Parameter(torch.ones(width))
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))  # type: ignore[no-any-return]


def put_out(module: GatedLayers, every: int) -> None:
    """Multiply some channels of the norm by 10 to 50, and divide the columns that read them."""
    count = len(module.norm[3::every])
    factors = torch.linspace(10, 50, count)
    module.norm.data[3::every] *= factors
    for layer in (module.gate, module.up):
        layer.weight.data[:, 3::every] /= factors


def samples_of(width: int, count: int = 10) -> Samples:
    """Return batches whose channels depend on each other, as those of real layers do."""
    mixing = torch.randn(width // 4, width)
    batches = [torch.randn(4, 32, width // 4) @ mixing for _ in range(count)]
    return Samples([{"x": b + 2 * torch.randn_like(b)} for b in batches], 4 * count, "random")


FORMATS = {"gate.weight": "Q4_K", "up.weight": "Q4_K"}


def fold(graph: Graph, samples: Samples, formats: dict[str, str] = FORMATS) -> QuantizationLog:
    """Run the pass, which must keep the function."""
    log = QuantizationLog()
    before = graph.run(samples.batches[0])["output"]
    blocks = {name: BLOCK_FORMATS[format] for name, format in formats.items()}
    run(graph, [FoldInputScales(blocks, log, samples)])
    after = graph.run(samples.batches[0])["output"]
    assert float((after - before).abs().max()) <= 1e-4 * float(before.abs().max())
    return log


def quantized_error(graph: Graph, samples: Samples, folder: Path, held: Tensor) -> float:
    """Return the relative squared error of the output once weights are in blocks."""
    expected = graph.run({"x": held})["output"] - held
    blocks = {name: BLOCK_FORMATS[format] for name, format in FORMATS.items()}
    QuantizeBlocks(blocks, QuantizationLog(), BlockStore(folder), samples).run(graph)
    found = graph.run({"x": held})["output"] - held
    return float((found - expected).square().sum() / expected.square().sum())


def test_outliers_of_a_norm_cost_nothing(tmp_path: Path) -> None:
    *seen, last = samples_of(256)
    samples, held = Samples(seen, 4 * len(seen), "random"), last["x"]
    clean = GatedLayers(256, 32).eval()
    bad = copy.deepcopy(clean)
    put_out(bad, 32)
    graphs = [trace(m, {"x": held}) for m in (clean, bad, bad)]
    log = fold(graphs[2], samples)
    (folded,) = log.foldings
    assert (folded.name, folded.layers) == ("norm", ["gate.weight", "up.weight"])
    assert folded.error < 0.95
    errors = [quantized_error(g, samples, tmp_path / str(i), held) for i, g in enumerate(graphs)]
    assert errors[1] > 1.3 * errors[0], "without the pass, outliers cost"
    assert errors[2] < 1.1 * errors[0]


def test_layers_that_gain_nothing_are_left_as_they_are() -> None:
    module = GatedLayers(256, 32).eval()
    samples = samples_of(256, 4)
    graph = trace(module, {"x": samples.batches[0]["x"]})
    before = graph.to_text()
    log = fold(graph, samples, {"up.weight": "Q8_0", "gate.weight": "Q8_0"})
    assert [(r.name, r.method, r.error) for r in log.foldings] == [("norm", "none", 1.0)]
    assert log.foldings[0].layers == ["gate.weight", "up.weight"]
    assert graph.to_text() == before


def test_no_group_is_no_walk() -> None:
    graph = trace(nn.Linear(32, 32).eval(), torch.randn(2, 32))
    nothing = Samples([], 0, "nothing")
    log = QuantizationLog()
    fold_nothing = FoldInputScales({"weight": BLOCK_FORMATS["Q4_0"]}, log, nothing)
    assert run(graph, [fold_nothing])[0].rewrites == 0
    assert log.foldings == []


def test_golden(
    golden: Callable[[str, str], None],
    quarters: Callable[[nn.Module], nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def powers_of_2(judged: Any, columns: Tensor, free: Tensor) -> Choice:
        return Choice("powers of 2", 2.0 ** (torch.arange(len(free)) % 3).double(), {})

    monkeypatch.setattr(fold_input_scales, "choose", powers_of_2)
    module = quarters(GatedLayers(32, 32))
    rows = (torch.arange(64 * 32) * 5 % 13 - 6).reshape(2, 32, 32) / 4
    graph = trace(module, {"x": rows})
    fold(graph, Samples([{"x": rows}], 2, "random"), {"up.weight": "Q4_0", "down.weight": "Q4_0"})
    powers = 2.0 ** (torch.arange(32) % 3)
    weights = graph.weights
    torch.testing.assert_close(weights["norm"], module.norm / powers, rtol=0, atol=0)
    torch.testing.assert_close(weights["up.bias"], module.up.bias / powers, rtol=0, atol=0)
    expected = module.up.weight * powers / powers[:, None]
    torch.testing.assert_close(weights["up.weight"], expected, rtol=0, atol=0)
    golden("fold_input_scales.txt", graph.to_text())
