"""What the engine's gate catches, and what is refused in which words."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qcompile
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.ir.errors import GateError, TargetError, UnsupportedError
from qcompile.runtime.errors import BundleError
from qcompile.targets.device import load_device
from qcompile.targets.options import WeightOptions
from qcompile.targets.tvm import converters
from qcompile.targets.tvm.emitter import EMITTER
from qcompile.targets.tvm.kernels import conv

X86 = "x86-avx512-vnni"


def wrong_zero_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions fill their border with another code."""
    real = conv.conv
    monkeypatch.setattr(conv, "conv", lambda w, i, zero, c: real(w, i, zero + 9, c))


def swapped_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let convolutions read columns for rows."""
    real = conv._Conv._codes

    def other(self: Any, x: Any, source: Any, n: Any, h: Any, w: Any, *rest: Any) -> Any:
        return real(self, x, source, n, w, h, *rest)

    monkeypatch.setattr(conv._Conv, "_codes", other)


def wrong_multiplier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let layers scale their sums by 5 % too much."""
    real = converters._Layer.constants

    def other(self: Any, kernel: Any, multiplier: Any, offset: Any) -> Any:
        return real(self, kernel, multiplier * 1.05, offset)

    monkeypatch.setattr(converters._Layer, "constants", other)


@pytest.mark.parametrize(
    "damage",
    [
        wrong_zero_point,
        pytest.param(swapped_axes, marks=pytest.mark.slow),
        pytest.param(wrong_multiplier, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_kernel_is_caught(
    damage: Callable[[pytest.MonkeyPatch], None], build_for: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    damage(monkeypatch)
    with pytest.raises(GateError, match=r"engine: \d value\(s\) differ .*, first conv2d") as caught:
        build_for(tmp_path)
    rejected: Any = caught.value.bundle
    rows = {row["name"]: row for row in rejected.manifest.parity["engine"]}
    assert rows["image"]["largest"] == 0
    assert rows["conv2d"]["differing"] > 0.05
    assert (tmp_path / "tiny.qc.rejected" / "model.so").is_file()


@torch.library.custom_op("qcompile_tvm_test::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    """An op that TVM does not know."""
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Foreign(nn.Module):
    """Uses an op without a converter, twice."""

    def forward(self, x: Tensor) -> Tensor:
        return twice(twice(x) + 1)  # type: ignore[no-any-return]


def test_unsupported_ops_are_all_named_before_any_work() -> None:
    pytest.importorskip("tvm", reason="apache-tvm is not installed")
    graph = trace(Foreign(), (torch.randn(2, 3),))
    with pytest.raises(UnsupportedError, match=r"no form for 2 part.*twice.*twice.*--format onnx"):
        EMITTER.check(graph, load_device("x86-avx512-vnni"))


@pytest.mark.parametrize(
    "options",
    [WeightOptions(granularity="per-group"), WeightOptions(group_size=32)],
    ids=["per-group", "group size"],
)
def test_groups_are_refused(options: WeightOptions) -> None:
    with pytest.raises(TargetError, match="use --granularity per-channel or per-tensor"):
        EMITTER.scheme("int8", load_device(X86), options)


def test_weights_have_seven_bits_where_pairs_saturate() -> None:
    bits = {
        name: EMITTER.scheme("int8", load_device(name)).weight.bits  # type: ignore[union-attr]
        for name in (X86, "x86-avx2", "raspberry-pi-4", "raspberry-pi-5")
    }
    assert bits == {X86: 8, "x86-avx2": 7, "raspberry-pi-4": 8, "raspberry-pi-5": 8}


def changed(bundle: qcompile.Bundle, folder: Path, **options: Any) -> Path:
    """Return a copy of a bundle whose engine has other options."""
    copy = folder / "changed.qc"
    shutil.copytree(bundle.path, copy)
    data = json.loads((copy / "manifest.json").read_text())
    data["engine"]["options"].update(options)
    (copy / "manifest.json").write_text(json.dumps(data))
    return copy


def test_a_missing_instruction_set_is_one_sentence(bundle: qcompile.Bundle, tmp_path: Path) -> None:
    copy = changed(bundle, tmp_path, cpu_features=["avx2", "avx1024", "vliw"])
    with pytest.raises(BundleError, match=r"this CPU has no avx1024, vliw, which.*--target host"):
        qcompile.load(copy)
    done = subprocess.run([copy / "run"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "avx1024" in done.stderr


def test_another_architecture_is_one_sentence(bundle: qcompile.Bundle, tmp_path: Path) -> None:
    copy = changed(bundle, tmp_path, arch="aarch64", cpu_features=["neon"])
    with pytest.raises(BundleError, match=r"it is for aarch64, and this machine is x86_64"):
        qcompile.load(copy)
