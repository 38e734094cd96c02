"""Calibration data of every kind; what is refused is in ``tests/compiler/cli/test_bad_data.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn

from qcompile.compiler.frontend.calibration import load_samples
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import CalibrationError
from qcompile.compiler.ir.graph import Graph


class Two(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b.float()


BATCH = torch.export.Dim("batch", min=1, max=64)
A = np.arange(120, dtype=np.float32).reshape(40, 3)
B = np.arange(120, dtype=np.int64).reshape(40, 3)


@pytest.fixture(scope="module")
def one() -> Graph:
    return trace(nn.Linear(3, 4), {"input": torch.zeros(2, 3)}, {"input": {0: BATCH}})


@pytest.fixture(scope="module")
def two() -> Graph:
    example = {"a": torch.zeros(2, 3), "b": torch.tensor([[5, 6, 7], [5, 6, 7]])}
    return trace(Two(), example, {"a": {0: BATCH}, "b": {0: BATCH}})


def gathered(graph: Graph, given: Any, **options: Any) -> np.ndarray:
    samples = load_samples(graph, given, **options)
    return torch.cat([batch["input"] for batch in samples]).numpy()


def test_every_kind_gives_the_same(one: Graph, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", input=A)
    np.save(tmp_path / "x.npy", A)
    save_file({"input": A}, tmp_path / "x.safetensors")
    (tmp_path / "folder").mkdir()
    for index, sample in enumerate(A):
        np.save(tmp_path / "folder" / f"{index:02}.npy", sample)
    kinds: list[Any] = [tmp_path / name for name in ("x.npz", "x.npy", "x.safetensors", "folder")]
    kinds += [A, torch.from_numpy(A), {"input": A}, {"input": A.tolist()}]
    kinds += [np.split(A, 20), [{"input": part} for part in np.split(A, 8)], iter(np.split(A, 40))]
    kinds += [{"input": torch.from_numpy(A).requires_grad_()}, [[part] for part in np.split(A, 4)]]
    for kind in kinds[:7] + kinds[8:]:
        np.testing.assert_array_equal(gathered(one, kind), A)
    with pytest.raises(CalibrationError, match="input is float64, the model takes float32"):
        gathered(one, kinds[7])


def test_the_seed_chooses(one: Graph) -> None:
    first = gathered(one, A, num_samples=10, seed=1)
    np.testing.assert_array_equal(first, gathered(one, A, num_samples=10, seed=1))
    assert not np.array_equal(first, gathered(one, A, num_samples=10, seed=2))
    assert (np.diff(first[:, 0]) > 0).all(), "in their own order"


def test_random_only_if_asked(one: Graph, two: Graph) -> None:
    samples = load_samples(one, "random")
    assert (samples.source, samples.count) == ("random", 64)
    same = [load_samples(two, "random", num_samples=9, seed=3).sha256() for _ in range(2)]
    assert same[0] == same[1] != load_samples(two, "random", num_samples=9, seed=4).sha256()
    batch = load_samples(two, "random", num_samples=9).batches[0]
    assert batch["b"].unique().tolist() == [5, 6, 7], "integers are those of the example inputs"


def test_files_without_names_need_one_input(two: Graph, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", A)
    with pytest.raises(
        CalibrationError, match=r"x.npy has no names, and the model has the inputs a, b"
    ):
        load_samples(two, tmp_path / "x.npy")
    with pytest.raises(CalibrationError, match=r"different numbers of samples \(a: 40, b: 39\)"):
        load_samples(two, {"a": A, "b": B[:39]})
    with pytest.raises(CalibrationError, match="b is int32, the model takes int64"):
        load_samples(two, {"a": A, "b": B.astype(np.int32)})


def test_every_problem_is_told(two: Graph) -> None:
    with pytest.raises(CalibrationError) as error:
        load_samples(two, {"a": A[:, :2], "b": B.astype(np.uint8)})
    assert "a sample of a is 2, the model takes 3; b is uint8" in str(error.value)


def test_a_fixed_batch_needs_whole_batches() -> None:
    graph = trace(nn.Linear(3, 4), {"input": torch.zeros(16, 3)})
    assert [len(b["input"]) for b in load_samples(graph, A[:32])] == [16, 16]
    with pytest.raises(CalibrationError, match=r"40 samples do not fill batches of 16.*32\)"):
        load_samples(graph, A)
