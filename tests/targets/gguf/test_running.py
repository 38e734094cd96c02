"""What a file takes while it runs, predicted from its sizes alone and measured in llama.cpp."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import TargetError
from qcompile.runtime.errors import BundleError
from qcompile.targets.device import load_device
from qcompile.targets.gguf import running
from qcompile.targets.gguf.activity import activity
from qcompile.targets.gguf.choices import tensor_choices
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.planning import file_plan
from qcompile.targets.gguf.times import token_times, with_types
from qcompile.targets.options import NO_BLOCK_OPTIONS

pytest.importorskip("llama_cpp")
F16 = running.engine_options(NO_BLOCK_OPTIONS)
Q8_0 = running.engine_options(replace(NO_BLOCK_OPTIONS, kv_type="q8_0"))


@pytest.fixture(scope="module")
def layout(language_model: Path) -> Layout:
    """Of the model of 7 million parameters."""
    from qcompile.compiler.frontend.load import load

    checkpoint = load(str(language_model)).checkpoint
    assert checkpoint is not None
    return Layout.of(checkpoint, "q4_k_m", NO_BLOCK_OPTIONS)


@pytest.mark.parametrize("options", [F16, Q8_0], ids=["f16", "q8_0"])
@pytest.mark.parametrize("context", [200, 1024])
def test_memory_is_what_a_process_takes(
    layout: Layout, tmp_path: Path, options: dict[str, Any], context: int
) -> None:
    """No less than the process that fills the context holds at its peak, and hardly more."""
    file = tmp_path / "empty.gguf"
    running.write_empty(layout, file)
    predicted = running.engine_memory(layout, options, context).total + file.stat().st_size
    peak = running.measured_memory(file, options, context)

    assert file.stat().st_size == file_plan(layout).bytes
    assert peak <= predicted < 1.12 * peak


def test_a_file_without_weights_takes_no_place(layout: Layout, tmp_path: Path) -> None:
    file = tmp_path / "empty.gguf"
    running.write_empty(layout, file)

    assert 512 * file.stat().st_blocks < 0.1 * file.stat().st_size


def test_what_cannot_be_measured(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF")

    with pytest.raises(BundleError, match=r"cannot be measured in llama\.cpp: .*no GGUF file"):
        running.measured_memory(file, F16, 64)


def test_modelled_times_are_bytes_over_bandwidth(tiny_source: Source) -> None:
    """Of a tied table all is read; with every tensor in Q8_0 a token reads the file but for its words."""
    assert tiny_source.checkpoint is not None
    layout = Layout.of(tiny_source.checkpoint, "q8_0", NO_BLOCK_OPTIONS)
    choices = tensor_choices(layout, NO_BLOCK_OPTIONS, frozenset())
    device = load_device("apple-m2")
    found = token_times(layout, choices, device, F16)
    of_eights = found.rest + sum(row["Q8_0"] for row in found.of.values())
    stored = sum(tensor.bytes for tensor in file_plan(layout).tensors)

    assert found.modelled
    assert of_eights == pytest.approx(1e3 * stored / 100e9)


def test_a_device_of_which_nothing_is_known(tiny_source: Source) -> None:
    assert tiny_source.checkpoint is not None
    layout = Layout.of(tiny_source.checkpoint, "q8_0", NO_BLOCK_OPTIONS)

    with pytest.raises(TargetError, match="neither measured here nor modelled"):
        token_times(layout, [], load_device("x86-avx2"), F16)


def test_measured_times_add_up(tiny_source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine whose time is known for each format, the sum of any plan is what it would take."""
    assert tiny_source.checkpoint is not None
    layout = Layout.of(tiny_source.checkpoint, "q8_0", NO_BLOCK_OPTIONS)
    choices = tensor_choices(layout, NO_BLOCK_OPTIONS, frozenset())
    speeds = {f.name: 1.0 + i for i, f in enumerate({f for c in choices for f in c.formats})}
    count = sum(elements(c.tensors) for c in choices)

    def engine(layouts: list[Layout], options: Any) -> list[float]:
        return [
            sum(
                speeds[one.chosen.types[name]] * elements({name: shape}) / count
                for c in choices
                for name, shape in c.tensors.items()
            )
            for one in layouts
        ]

    monkeypatch.setattr(running, "empty_milliseconds", engine)
    found = token_times(layout, choices, load_device("host"), F16)
    plan = {c.name: c.formats[i % len(c.formats)].name for i, c in enumerate(choices)}
    (expected,) = engine([with_types(layout, choices, plan)], F16)

    assert sum(found.of[name][kind] for name, kind in plan.items()) == pytest.approx(expected)


def elements(shapes: Any) -> int:
    return sum(rows * columns for rows, columns in shapes.values())


def test_what_a_token_reads(tiny_source: Source, checkpoints: Any, tmp_path: Path) -> None:
    """A table alone is looked up; of experts those that the router takes are read."""
    from qcompile.compiler.frontend.load import load

    assert tiny_source.checkpoint is not None
    tied = Layout.of(tiny_source.checkpoint, "q8_0", NO_BLOCK_OPTIONS)
    folder = checkpoints.random_checkpoint(tmp_path / "mixtral", "mixtral")
    checkpoint: Checkpoint | None = load(str(folder)).checkpoint
    assert checkpoint is not None
    experts = Layout.of(checkpoint, "q8_0", NO_BLOCK_OPTIONS)
    config = checkpoint.config

    assert activity(tied, "token_embd.weight") == 1
    assert activity(experts, "token_embd.weight") == 0
    assert activity(experts, "blk.0.attn_q.weight") == 1
    share = config["num_experts_per_tok"] / config["num_local_experts"]
    assert activity(experts, "blk.0.ffn_up_exps.weight") == share
