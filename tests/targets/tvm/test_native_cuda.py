"""The native program where the manifest asks for a GPU that cannot be used, or for what it never heard of."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qcompile.runtime.manifest import FILE


def refused(bundle: Path, device: str) -> str:
    """Return the error of a bundle for a device: one line, alone, with exit code 2."""
    data = json.loads((bundle / FILE).read_text())
    data["engine"]["options"]["device"] = device
    (bundle / FILE).write_text(json.dumps(data))
    result = subprocess.run(
        [bundle / "run"], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_cuda_without_its_library(bundle: Path) -> None:
    error = refused(bundle, "cuda")
    assert error.startswith("error: CUDA cannot be used (")
    assert "libtvm_runtime_cuda.so" in error
    assert error.endswith(
        "); install NVIDIA's driver and the CUDA 13 runtime, or use a bundle for the CPU\n"
    )


@pytest.mark.parametrize("device", ["vulkan", "cuda:0", ""])
def test_a_device_that_there_is_not(bundle: Path, device: str) -> None:
    assert f"there is no device {device}; choose cpu or cuda" in refused(bundle, device)


def test_the_cpu_named_is_the_cpu(bundle: Path) -> None:
    data = json.loads((bundle / FILE).read_text())
    data["engine"]["options"]["device"] = "cpu"
    (bundle / FILE).write_text(json.dumps(data))
    done = subprocess.run([bundle / "run", "--calls", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
