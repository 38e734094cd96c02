"""``--encoder ggml``: the tensors of our file are those of llama-quantize's, byte for byte."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qcompile.compiler.driver.build import build
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.frontend.load import load
from qcompile.targets.gguf.imatrix import Imatrix, write_imatrix
from qcompile.targets.gguf.mixes import MIXES
from qcompile.targets.options import BlockOptions

gguf = pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
WIDE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}


@pytest.mark.parametrize("mix", ["q4_k_m", "q2_k", "iq4_xs"])
def test_the_bytes_are_llama_quantizes(
    mix: str, tmp_path: Path, checkpoints: ModuleType, llama_cpp: ModuleType
) -> None:
    folder = checkpoints.random_checkpoint(tmp_path / "model", "llama", **WIDE)
    exact = checkpoints.write_f32(folder, tmp_path / "f32.gguf")
    importance = drawn(exact)
    peer = tmp_path / "peer.gguf"
    llama_cpp.quantize(exact, peer, MIXES[mix].file_type, importance)
    file = tmp_path / "imatrix.gguf"
    counts = {name: np.ones(1, np.float32) for name in importance}
    rows = {name: values[None] for name, values in importance.items()}
    write_imatrix(file, Imatrix(rows, counts))
    options = BuildOptions(
        target="host", format="gguf", precision=mix, blocks=BlockOptions((), "ggml", file)
    )
    ours = build(load(str(folder)), tmp_path / "ours.qc", options).path / "model.gguf"
    found, expected = stored(ours), stored(peer)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def drawn(file: Path) -> dict[str, np.ndarray]:
    """Return an importance for every matrix in the layers."""
    generator = np.random.default_rng(0)
    return {
        tensor.name: generator.exponential(size=int(tensor.shape[0])).astype(np.float32)
        for tensor in gguf.GGUFReader(file).tensors
        if tensor.name.startswith("blk.") and len(tensor.shape) > 1
    }


def stored(file: Path) -> dict[str, tuple[int, bytes]]:
    """Return type and bytes of every tensor."""
    tensors = gguf.GGUFReader(file).tensors
    return {t.name: (int(t.tensor_type), np.asarray(t.data).tobytes()) for t in tensors}
