"""A build leaves nothing in the temporary folder: not when Python ends, but when the build does."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result


@pytest.fixture
def temporary(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder, for this process and for those that it starts."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder.parent / "torch"))  # PyTorch's own
    return folder


@pytest.mark.parametrize(
    ("package", "target"),
    [("onnxruntime", "x86-avx512-vnni"), ("coremltools", "apple-m2"), ("tvm", "raspberry-pi-5")],
)
def test_a_build(
    here: Path, run: Callable[..., Result], temporary: Path, package: str, target: str
) -> None:
    pytest.importorskip(package)
    assert run("tiny.py", "-t", target, "-o", "tiny.qc").exit_code == 0
    assert os.listdir(temporary) == []
    assert run("verify", "tiny.qc", "--against", "tiny.py").exit_code == 0
    assert os.listdir(temporary) == []
