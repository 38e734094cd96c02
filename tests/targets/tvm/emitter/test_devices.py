"""Slow: other CPUs, this machine, and sizes that nothing divides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import qcompile
from qcompile.runtime.errors import BundleError
from qcompile.targets.device import load_device
from qcompile.targets.device_schema import ISA
from qcompile.targets.tvm import libraries

pytestmark = pytest.mark.slow
X86 = "x86-avx512-vnni"


def test_this_machine_is_a_target(build_for: Any, make_images: Any, tmp_path: Path) -> None:
    found = build_for(tmp_path, "host", precision="int8")
    assert found.passed
    features = set(found.manifest.engine["options"]["cpu_features"])
    assert features == set(load_device("host").isa) & set(ISA["x86_64"])
    assert qcompile.load(found.path).run({"image": make_images(2)})


@pytest.mark.parametrize("device", [X86, "x86-avx2", "raspberry-pi-4", "raspberry-pi-5"])
def test_odd_sizes(device: str, build_for: Any, tmp_path: Path) -> None:
    found = build_for(tmp_path, device, odd=True)
    assert found.passed
    rows = [row for row in found.manifest.parity["engine"] if row["sqnr_db"] is None]
    assert len(rows) >= 8
    assert max(row["largest"] for row in rows) <= 1
    floats = [row["op"] for row in found.manifest.floats]
    assert "conv2d" not in floats


@pytest.mark.parametrize("device", ["raspberry-pi-4", "raspberry-pi-5"])
def test_aarch64_in_the_emulator(device: str, build_for: Any, tmp_path: Path) -> None:
    found = build_for(tmp_path, device)
    assert found.passed
    assert found.manifest.engine["options"]["arch"] == "aarch64"
    assert ("dotprod" in found.manifest.engine["options"]["cpu_features"]) == device.endswith("5")
    rows = [row for row in found.manifest.parity["engine"] if row["sqnr_db"] is None]
    assert max(row["largest"] for row in rows) <= 1
    if not libraries.is_native("aarch64"):
        with pytest.raises(BundleError, match=r"it is for aarch64, and this machine is"):
            qcompile.load(found.path)
