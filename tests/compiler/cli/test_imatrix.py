"""``qcompile imatrix`` against hooks in PyTorch, with the names of the ``gguf`` package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.targets.base import BlockOptions
from qcompile.targets.gguf.imatrix import read_imatrix
from qcompile.targets.gguf.importance import importances
from qcompile.targets.gguf.layout import Layout

Run = Callable[..., Result]
Refuses = Callable[..., str]
LENGTH, SEQUENCES, LEFT_OVER = 16, 11, 5
ARCHITECTURES = {"llama3": "LLAMA", "gpt2": "GPT2"}


@pytest.fixture
def ids(here: Path) -> np.ndarray:
    """Token ids, in ``ids.npz``; the last ones fill no sequence."""
    count = LENGTH * SEQUENCES + LEFT_OVER
    ids = np.random.default_rng(0).integers(0, 258, count)
    np.savez(here / "ids.npz", ids=ids)
    return ids


def _hooked(folder: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return the mean squares of what each matrix in the layers is given, by its name in PyTorch."""
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: dict[str, np.ndarray] = {}

    def watch(name: str) -> Any:
        def keep(_: Any, given: Any) -> None:
            values = given[0].numpy().astype(np.float64).reshape(-1, given[0].shape[-1])
            found[name] = (values**2).mean(0)

        return keep

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and name != "lm_head":
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    with torch.no_grad():
        model(torch.from_numpy(ids[: LENGTH * SEQUENCES].reshape(SEQUENCES, LENGTH)))
    return found


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_hooks_see(
    run: Run, checkpoints: ModuleType, here: Path, ids: np.ndarray, family: str
) -> None:
    gguf = pytest.importorskip("gguf")
    folder = checkpoints.random_checkpoint(here / "m", family)
    given = ["imatrix", folder, "--calibrate", "ids.npz", "--seq-len", str(LENGTH), "--json"]
    result = run(*given, "-o", "i.gguf")
    assert result.exit_code == 0, result.output
    expected = _hooked(folder, ids)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[ARCHITECTURES[family]], 2)
    found = read_imatrix(here / "i.gguf")
    assert set(found.values) == {names.get_name(n, (".weight",)) for n in expected}
    for name, values in expected.items():
        own = names.get_name(name, (".weight",))
        np.testing.assert_allclose(found.values[own], values[None], rtol=2e-5)
        assert found.counts[own].tolist() == [LENGTH * SEQUENCES]
    assert (found.chunk_size, found.chunk_count) == (LENGTH, SEQUENCES)
    data = json.loads(result.stdout)
    assert data["matrices"] == len(expected)
    used = {"sequences": SEQUENCES, "seq_len": LENGTH, "left_over": LEFT_OVER, "tokens": len(ids)}
    assert data["dataset"].items() >= used.items()
    _a_build_takes_it(checkpoints, folder, here / "i.gguf", expected)


def _routed(folder: Path, ids: np.ndarray) -> dict[str, list[tuple[np.ndarray, int]]]:
    """Return sums of squares and counts of each expert's tokens, from transformers' own loop over experts."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    )
    found: dict[str, list[tuple[np.ndarray, int]]] = {}

    def watch(layer: str) -> Any:
        def keep(module: Any, given: Any) -> None:
            x, chosen, _ = given
            own = [x[(chosen == expert).any(1)] for expert in range(module.num_experts)]
            both = [
                torch.nn.functional.linear(*p) for p in zip(own, module.gate_up_proj, strict=True)
            ]
            halves = [value.chunk(2, -1) for value in both]
            inner = [torch.nn.functional.silu(gate) * up for gate, up in halves]
            for part, rows in (("gate", own), ("up", own), ("down", inner)):
                sums = [(r.double().square().sum(0).numpy(), len(r)) for r in rows]
                found[f"blk.{layer}.ffn_{part}_exps.weight"] = sums

        return keep

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(watch(name.split(".")[2]))
    with torch.no_grad():
        model(torch.from_numpy(ids[: LENGTH * SEQUENCES].reshape(SEQUENCES, LENGTH)))
    return found


@pytest.mark.parametrize("family", ["qwen3moe", "mixtral"])
def test_experts_count_the_tokens_that_reach_them(
    run: Run, checkpoints: ModuleType, here: Path, ids: np.ndarray, family: str
) -> None:
    sizes = {"num_experts": 12, "num_local_experts": 12, "num_hidden_layers": 1}
    folder = checkpoints.random_checkpoint(here / "m", family, **sizes)
    few = np.tile(ids[:4], len(ids) // 4)
    np.savez(here / "few.npz", ids=few)
    given = ["imatrix", folder, "--calibrate", "few.npz", "--seq-len", str(LENGTH)]
    result = run(*given, "-o", "i.gguf")
    assert result.exit_code == 0, result.output
    found, expected = read_imatrix(here / "i.gguf"), _routed(folder, few)
    assert len(expected) == 3
    for name, rows in expected.items():
        counts = [count for _, count in rows]
        assert found.counts[name].tolist() == counts
        assert sum(counts) == 2 * LENGTH * SEQUENCES
        assert 0 in counts, "an expert that no token reached"
        for values, (sums, count) in zip(found.values[name], rows, strict=True):
            mean = sums / count if count else np.ones_like(sums)
            np.testing.assert_allclose(values, mean, rtol=2e-5)
    assert found.unvisited == {n: [c for _, c in rows].count(0) for n, rows in expected.items()}
    assert found.counts["blk.0.attn_q.weight"].tolist() == [LENGTH * SEQUENCES]


def _a_build_takes_it(
    checkpoints: ModuleType, folder: Path, file: Path, expected: dict[str, np.ndarray]
) -> None:
    """Read the file as ``--imatrix`` does: by the names that weights have in the graph."""
    config, shapes, _ = checkpoints.opened(folder)
    prefix = {"gpt2": "transformer."}.get(config["model_type"], "")
    shapes = {n if n.startswith(prefix) else prefix + n: s for n, s in shapes.items()}
    layout = Layout.of(Checkpoint(folder, config, shapes, 64), "q4_0", BlockOptions(imatrix=file))
    found = importances(layout, file)
    assert set(found) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=2e-5)


def test_little_memory_gives_the_same_bytes(
    run: Run, checkpoints: ModuleType, here: Path, ids: np.ndarray
) -> None:
    folder = checkpoints.random_checkpoint(here / "m", "llama")
    given = ["imatrix", folder, "--calibrate", "ids.npz", "--seq-len", str(LENGTH)]
    assert run(*given).exit_code == 0
    first = (here / "imatrix.gguf").read_bytes()
    result = run(*given, "--max-host-ram", "1kB", "--force")
    assert "11 sequences of 16; the last 5 tokens are left over" in result.stdout
    assert (here / "imatrix.gguf").read_bytes() == first


def test_refusals(refuses: Refuses, checkpoints: ModuleType, here: Path, ids: np.ndarray) -> None:
    folder = checkpoints.random_checkpoint(here / "m", "llama")
    given = ["imatrix", folder, "--calibrate", "ids.npz"]
    (here / "there.gguf").write_bytes(b"")
    assert refuses(*given, "-o", "there.gguf").startswith("there.gguf exists; give --force")
    assert refuses(*given, "-o", ".").endswith("is a folder; give a file as -o")
    assert refuses(*given, "-o", "no/i.gguf").startswith("no is no folder; make it")
    assert "the length must be 2 to 64" in refuses(*given, "--seq-len", "65")
    message = refuses("imatrix", folder, "--calibrate", "no.txt")
    assert message == "no.txt does not exist, or is no file"
    message = refuses("imatrix", "tiny.py", "--calibrate", "ids.npz")
    assert message == "tiny.py is no language model: give a Hugging Face directory"
