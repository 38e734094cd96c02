"""quantize-blocks: bytes as formats encode them, methods kept where they are better, work that survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import DECODE_BLOCKS
from qcompile.compiler.ir.stored import StoredTensor
from qcompile.compiler.ir.tensor_file import TensorPlace
from qcompile.compiler.ir.weights import Weights
from qcompile.passes.base import run
from qcompile.passes.calibration import parallel
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization import quantize_blocks
from qcompile.passes.quantization.block_store import BlockStore
from qcompile.passes.quantization.quantize_blocks import QuantizeBlocks
from qcompile.passes.quantization.records import QuantizationLog, sqnr_db

TABLE, UP, DOWN = "table.weight", "up.weight", "down.weight"
FORMATS = {TABLE: BLOCK_FORMATS["Q8_0"], UP: BLOCK_FORMATS["Q4_0"], DOWN: BLOCK_FORMATS["Q4_1"]}


class Model(nn.Module):
    """A table that the output layer reads too, and a block between."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(24, 32)
        self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(x)))
        return nn.functional.linear(x, self.table.weight)


@pytest.fixture(autouse=True)
def _workers() -> Iterator[None]:
    yield
    parallel._workers.cache_clear()


def traced(module: nn.Module | None = None) -> Graph:
    return trace(module or Model(), {"ids": torch.arange(12).reshape(2, 6)})


def samples(batches: int = 9) -> Samples:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(24, (2, 6), generator=generator) for _ in range(batches)]
    return Samples([{"ids": ids} for ids in rows], 2 * batches, "ids")


def step(folder: Path, formats: Any = FORMATS, **options: Any) -> QuantizeBlocks:
    return QuantizeBlocks(formats, QuantizationLog(), BlockStore(folder), **options)


def stored(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_golden(
    golden: Callable[[str, str], None],
    quarters: Callable[[nn.Module], nn.Module],
    tmp_path: Path,
) -> None:
    graph = traced(quarters(Model()))
    assert run(graph, [step(tmp_path)])[0].rewrites == 3
    golden("quantize_blocks.txt", graph.to_text())


def test_without_samples_each_weight_is_what_its_format_encodes(tmp_path: Path) -> None:
    graph = traced()
    exact = {name: graph.weights[name] for name in FORMATS}
    importance = {UP: torch.rand(32)}
    task = step(tmp_path, importance=importance)
    run(graph, [task])
    for name, format in FORMATS.items():
        expected = format.encode(exact[name], importance.get(name))
        assert torch.equal(graph.weights[f"{name}_blocks"], expected), name
    methods = {record.name: record.rounding for record in task.log.layers}
    assert methods == {TABLE: "nearest", UP: "importance", DOWN: "nearest"}
    assert len(graph.calls(DECODE_BLOCKS)) == 3, "a tied table is decoded once"


def test_records_say_what_is_stored(tmp_path: Path) -> None:
    graph, task = traced(), step(tmp_path, samples=samples())
    run(graph, [task])
    rows = {record.name: record for record in task.log.layers}
    assert [rows[n].op for n in FORMATS] == ["embedding", "linear", "linear"]
    assert [rows[n].weight for n in FORMATS] == ["Q8_0", "Q4_0", "Q4_1"]
    for name in FORMATS:
        assert rows[name].bytes == graph.weights[f"{name}_blocks"].numel()
    quality = [rows[n].output_sqnr_db for n in FORMATS]
    assert all(q is not None and q > 15 for q in quality), quality


def test_a_method_is_kept_only_where_it_is_better_on_held_out_tokens(tmp_path: Path) -> None:
    graph, task = traced(), step(tmp_path, samples=samples())
    run(graph, [task])
    for record in task.log.layers:
        if record.rounding in record.tried:
            assert record.tried[record.rounding] < 1
            assert record.tried[record.rounding] == min(record.tried.values())
        else:
            assert all(error >= 1 for error in record.tried.values())
    assert any(record.tried for record in task.log.layers)


def test_the_recorded_error_is_that_of_the_graphs_output(tmp_path: Path) -> None:
    """The figure of the last layer, computed from moments, against both graphs on the held-out batch."""
    module = nn.Sequential(nn.Embedding(24, 32), nn.Linear(32, 64, bias=False))
    module.append(nn.Linear(64, 32, bias=False))
    graph = trace(module, {"input": torch.arange(12).reshape(2, 6)})
    before, held = graph.copy(), {"input": samples().batches[7]["ids"]}
    given = Samples([{"input": b["ids"]} for b in samples()], 18, "ids")
    formats = {"1.weight": BLOCK_FORMATS["Q4_0"], "2.weight": BLOCK_FORMATS["Q4_0"]}
    task = step(tmp_path, formats, samples=given)
    run(graph, [task])
    expected = sqnr_db([(before.run(held)["output"], graph.run(held)["output"])])
    assert task.log.layers[-1].output_sqnr_db == pytest.approx(expected, abs=1e-3)


def test_nearest_takes_no_feedback(tmp_path: Path) -> None:
    graph, task = traced(), step(tmp_path, samples=samples(), feedback=False)
    run(graph, [task])
    assert {r.rounding for r in task.log.layers} == {"nearest", "importance"}
    assert not any(record.tried for record in task.log.layers)


def test_the_bytes_do_not_depend_on_threads_or_on_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, found = Model(), []
    for index, cores in enumerate((1, 3, 3)):
        monkeypatch.setattr(parallel, "worker_count", lambda cores=cores: cores)
        parallel._workers.cache_clear()
        run(traced(module), [step(tmp_path / str(index), samples=samples())])
        found.append(stored(tmp_path / str(index)))
    assert found[0] == found[1] == found[2]


def test_spilled_activations_change_nothing(tmp_path: Path) -> None:
    module = Model()
    run(traced(module), [step(tmp_path / "memory", samples=samples())])
    run(traced(module), [step(tmp_path / "disk", samples=samples(), max_bytes=0)])
    assert stored(tmp_path / "memory") == stored(tmp_path / "disk")


@pytest.mark.parametrize("data", [None, samples()])
def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Samples | None
) -> None:
    module, done = Model(), []
    put = BlockStore.put

    def killed(self: BlockStore, name: str, *rest: Any) -> Any:
        if len(done) == 2:
            (self.folder / f"{name}.blocks.part").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(name)
        return put(self, name, *rest)

    monkeypatch.setattr(BlockStore, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        run(traced(module), [step(tmp_path / "a", samples=data)])
    monkeypatch.setattr(BlockStore, "put", put)
    assert len(done) == 2
    again: list[str] = []
    monkeypatch.setattr(
        BlockStore, "put", lambda self, name, *rest: (again.append(name), put(self, name, *rest))[1]
    )
    resumed, log = traced(module), step(tmp_path / "a", samples=data)
    run(resumed, [log])
    assert again == [name for name in FORMATS if name not in done]
    whole = step(tmp_path / "b", samples=data)
    run(traced(module), [whole])
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert log.log == whole.log


def test_weights_in_files_are_read_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = traced()
    save_file({name: graph.weights[name].contiguous() for name in FORMATS}, tmp_path / "w.st")
    expected = graph.run(graph.inputs)["output"]
    shapes = {name: len(graph.weights.peek(name)) for name in FORMATS}
    for name in FORMATS:
        graph.weights[name] = graph.weights.peek(name).to("meta")
    held = {name: StoredTensor(tmp_path / "w.st", name) for name in FORMATS}
    graph.weights = Weights(graph.module, held)
    rows: dict[str, int] = {}
    read = TensorPlace.read

    def counted(place: TensorPlace, *given: Any, **named: Any) -> Tensor:
        rows[place.key] = rows.get(place.key, 0) + place.shape[0]
        return read(place, *given, **named)

    monkeypatch.setattr(TensorPlace, "read", counted)
    monkeypatch.setattr(quantize_blocks, "ROWS", 7)
    step(tmp_path / "done").run(graph)
    assert list(rows) == list(FORMATS), "one after the other"
    assert rows == shapes, "once each"
    assert all(graph.weights.peek(f"{name}_blocks").is_meta for name in FORMATS)
    assert torch.nn.functional.mse_loss(graph.run(graph.inputs)["output"], expected) < 0.1


@pytest.mark.parametrize("data", [None, samples()])
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_what_cannot_be_stored_is_named(tmp_path: Path, data: Samples | None, value: float) -> None:
    module = Model()
    with torch.no_grad():
        module.up.weight[3, 5] = value
    with pytest.raises(ModelError, match=r"up\.weight cannot be stored: "):
        run(traced(module), [step(tmp_path, {UP: BLOCK_FORMATS["Q4_0"]}, samples=data)])
