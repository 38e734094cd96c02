"""Experts in the walk: each is rounded for the tokens that reach it, in the quantized graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DECODE_BLOCKS, EXPERT_LINEAR
from qcompile.passes.base import run
from qcompile.passes.calibration.input_squares import InputSquares
from qcompile.passes.calibration.routing import ExpertRows, FloatRows, Routed
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.calibration.walk import Values, Walk
from qcompile.passes.quantization.block_experts import FEW, seldom_reached
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.quantize_blocks import QuantizeBlocks
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db

EXPERTS, CHOICES, WIDTH, INNER = 6, 2, 32, 64
NEVER, SELDOM = 4, 5
"""Experts that no token chooses, and that one token of the vocabulary does."""
RARE = 23
"""That token."""


class Mixture(nn.Module):
    """A mixture whose router is a table: which tokens an expert gets is known beforehand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(24, WIDTH)
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.router = nn.Embedding(24, EXPERTS)
        scores = torch.rand(24, EXPERTS)
        scores[:, [NEVER, SELDOM]] = -1.0
        scores[RARE, SELDOM] = 2.0
        self.router.weight.data = scores
        for name, shape in (("gate", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            layers = [nn.Linear(*shape[::-1], bias=False) for _ in range(EXPERTS)]
            self.add_module(name, nn.ModuleList(layers))
        self.up = nn.ModuleList(nn.Linear(WIDTH, INNER, bias=False) for _ in range(EXPERTS))
        self.last = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        flat = ids.flatten()
        x = self.first(self.table(flat))
        shares, chosen = self.router(flat).softmax(-1).topk(CHOICES, -1)
        gate, up, down = ([layer.weight for layer in part] for part in self._parts())
        inner = functional.silu(EXPERT_LINEAR(x[:, None], chosen, None, gate))
        inner = inner * EXPERT_LINEAR(x[:, None], chosen, None, up)
        y = x + EXPERT_LINEAR(inner, chosen, shares, down).sum(1)
        return self.last(y).reshape(*ids.shape, -1)

    def _parts(self) -> list[Any]:
        return [self.get_submodule(name) for name in ("gate", "up", "down")]


@pytest.fixture
def graph() -> Graph:
    ids = torch.arange(12).reshape(2, 6)
    shapes = {"ids": {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2)}}
    return trace(Mixture(), {"ids": ids}, shapes)


def samples(batches: int = 16, tokens: int = 40) -> Samples:
    """Texts in which the rare token comes once, in the second batch."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(23, (2, tokens), generator=generator) for _ in range(batches)]
    if batches > 1:
        rows[1][0, 0] = RARE
    return Samples([{"ids": ids} for ids in rows], 2 * batches, "ids")


def names(*parts: str) -> list[str]:
    return [f"{part}.{expert}.weight" for part in parts for expert in range(EXPERTS)]


def step(folder: Path, **options: Any) -> QuantizeBlocks:
    kinds = {"first.weight": "Q4_0", "last.weight": "Q4_0"} | dict.fromkeys(names("down"), "Q8_0")
    kinds |= dict.fromkeys(names("gate", "up"), "Q4_0")
    formats = {name: BLOCK_FORMATS[kind] for name, kind in kinds.items()}
    return QuantizeBlocks(formats, QuantizationLog(), BlockStore(folder), **options)


def counted(given: Samples, router: Tensor) -> list[int]:
    """Return how many tokens each expert gets."""
    ids = torch.cat([batch["ids"].flatten() for batch in given])
    chosen = router[ids].topk(CHOICES, -1).indices
    return torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()


@pytest.mark.parametrize("max_bytes", [1 << 30, 1000])
def test_a_walk_that_reads_one_expert_at_a_time_gives_the_graphs_values(
    graph: Graph, max_bytes: int
) -> None:
    given, seen = samples(3), {}

    class Watch:
        def visit(self, walk: Walk, node: fx.Node) -> tuple[fx.Node, Values] | None:
            if all(user.op == "output" for user in node.users) and node.op == "call_function":
                source = node.all_input_nodes[0]
                seen.update(enumerate(walk.values[source].float[i].clone() for i in range(3)))
            return None

    Walk(graph, given, max_bytes).run(Watch())
    for index, value in seen.items():
        expected = graph.run(given.batches[index])["output"]
        torch.testing.assert_close(value.reshape(expected.shape), expected)
    assert seen


def test_bytes_and_records(graph: Graph, tmp_path: Path) -> None:
    given, router = samples(), graph.weights["router.weight"]
    exact = {name: graph.weights[name] for name in names("gate", "up", "down")}
    before, task = graph.copy(), step(tmp_path, samples=given)
    run(graph, [task])
    rows = {record.name: record for record in task.log.layers}
    counts = counted(given, router)
    assert (counts[NEVER], counts[SELDOM]) == (0, 1)
    assert min(counts[:NEVER]) > 8 * FEW, "more than FEW that judge"
    for part in ("gate", "up", "down"):
        found = [rows[f"{part}.{expert}.weight"] for expert in range(EXPERTS)]
        assert [record.tokens for record in found] == counts
        assert found[NEVER].rounding == "nearest"
        assert found[NEVER].note == "no calibration token reached this expert: rounded without"
        never = f"{part}.{NEVER}.weight"
        nearest = task.formats[never].encode(exact[never])
        assert torch.equal(graph.weights[f"{never}_blocks"], nearest)
        assert found[SELDOM].rounding == "importance"
        assert found[SELDOM].note.startswith("1 calibration tokens reached this expert")
        assert {record.note for record in found[:NEVER]} == {""}
        assert all(set(record.tried) >= {"gptq"} for record in found[:NEVER])
    assert rows["first.weight"].tokens is None
    assert len(graph.calls(DECODE_BLOCKS)) == 2 + 3 * EXPERTS
    assert seldom_reached(task.log.layers).startswith("6 of 18 matrices of experts")
    assert "3 of them by none" in seldom_reached(task.log.layers)
    outputs = [(before.run(batch)["output"], graph.run(batch)["output"]) for batch in given]
    assert all(y.isfinite().all() for _, y in outputs)
    found_db, plain = sqnr_db(outputs), _nearest(before, given, tmp_path / "plain")
    assert found_db is not None
    assert found_db > plain + 1


def _nearest(graph: Graph, given: Samples, folder: Path) -> float:
    copy, task = graph.copy(), step(folder)
    run(copy, [task])
    assert seldom_reached(task.log.layers) == ""
    found = sqnr_db([(graph.run(b)["output"], copy.run(b)["output"]) for b in given])
    assert found is not None
    return found


def test_the_recorded_error_is_that_of_the_tokens_that_reached_the_expert(
    graph: Graph, tmp_path: Path
) -> None:
    """Of one expert's down projection, on the held-out batches: its share of the sum, in both graphs."""
    given, before = samples(), graph.copy()
    task = step(tmp_path, samples=given)
    run(graph, [task])
    rows = {record.name: record for record in task.log.layers}
    for expert in (0, 1):
        pairs = [_contributions(g, given, expert) for g in (before, graph)]
        expected = sqnr_db(zip(*pairs, strict=True))
        found = rows[f"down.{expert}.weight"].output_sqnr_db
        assert found == pytest.approx(expected, abs=1e-3)


def _contributions(graph: Graph, given: Samples, expert: int) -> list[Tensor]:
    """Return what an expert adds for its tokens, in the batches that judge."""
    node = graph.calls(EXPERT_LINEAR)[2]
    found = []

    class Stop(fx.Interpreter):
        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            return graph.weights[str(target)]

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n is node:
                _, chosen, *_ = (self.env[a] for a in n.args[:3])  # type: ignore[index]
                found.append(value[chosen == expert])
            return value

    for index in (7, 15):
        Stop(graph.module, garbage_collect_values=False).run(given.batches[index]["ids"])
    return found


def test_little_memory_and_a_second_run_give_the_same_bytes(graph: Graph, tmp_path: Path) -> None:
    stored = []
    for name, options in (("a", {}), ("b", {"max_bytes": 1000})):
        run(graph.copy(), [step(tmp_path / name, samples=samples(), **options)])
        files = sorted((tmp_path / name).glob("*.blocks"))
        stored.append({file.name: file.read_bytes() for file in files})
    assert stored[0] == stored[1]
    kept = {f: f.stat().st_mtime_ns for f in (tmp_path / "a").glob("*")}
    again = graph.copy()
    run(again, [step(tmp_path / "a", samples=samples())])
    assert {f: f.stat().st_mtime_ns for f in kept} == kept, "done: nothing is rounded anew"
    name = "up.1.weight"
    assert again.weights[f"{name}_blocks"].numpy().tobytes() == stored[0][f"{name}.blocks"]


def test_one_batch_and_nothing_to_judge_with(graph: Graph, tmp_path: Path) -> None:
    task = step(tmp_path, samples=samples(1, 6))
    run(graph, [task])
    rows = [record for record in task.log.layers if record.tokens is not None]
    assert sum(r.tokens or 0 for r in rows if r.name in names("up")) == 2 * 6 * CHOICES
    assert {record.rounding for record in rows} == {"nearest", "importance"}


def test_tokens_that_the_float_graph_sends_elsewhere_have_no_target() -> None:
    x = torch.arange(8.0).reshape(4, 2, 1)
    quantized = Routed([x], [torch.tensor([[0, 1], [1, 0], [2, 1], [0, 2]])], None)
    exact = Routed([x + 100], [torch.tensor([[1, 0], [0, 1], [2, 0], [1, 2]])], None)
    assert ExpertRows(quantized, 0)[0].flatten().tolist() == [0, 3, 6]
    found = FloatRows(quantized, exact, 0)[0].flatten().tolist()
    assert found == [101, 102, 6], "by token, wherever among the choices; the last is the quantized"
    assert FloatRows(quantized, exact, 3)[0].shape == (0, 1)


def test_squares_of_inputs_are_of_routed_tokens(graph: Graph) -> None:
    """As llama-imatrix counts: a token once for each expert that it chose, without its share."""
    given = samples(5)
    visitor = InputSquares(graph, names("gate", "up", "down"))
    Walk(graph, given).run(visitor)
    assert visitor.watched == set(names("gate", "up", "down"))
    ids = torch.cat([batch["ids"].flatten() for batch in given])
    x = graph.weights["table.weight"][ids] @ graph.weights["first.weight"].T
    chosen = graph.weights["router.weight"][ids].topk(CHOICES, -1).indices
    for expert in range(EXPERTS):
        own = x[(chosen == expert).any(1)]
        gate, up = (graph.weights[f"{part}.{expert}.weight"] for part in ("gate", "up"))
        inner = functional.silu(own @ gate.T) * (own @ up.T)
        for part, value in (("gate", own), ("up", own), ("down", inner)):
            found = visitor.found[f"{part}.{expert}.weight"]
            assert found.rows == len(own)
            expected = value.double().square().sum(0)
            torch.testing.assert_close(found.sums, expected, rtol=1e-5, atol=1e-9)
