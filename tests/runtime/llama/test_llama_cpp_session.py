"""The session of llama.cpp against transformers: the same logits, and refusals in one sentence."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompile.runtime.errors import BundleError, InputError
from qcompile.runtime.sessions.llama_cpp import Engine

EXACT = {"kv_type": "f32"}


@pytest.fixture(scope="module")
def engine(language_gguf: Path) -> Engine:
    return Engine(language_gguf, EXACT, threads=1)


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(4, 4096, (2, 300))


@pytest.fixture(scope="module")
def expected(language_model: Path, ids: np.ndarray) -> np.ndarray:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.float32)
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(ids)).logits.numpy()
    return found


def test_logits_are_those_of_transformers(
    engine: Engine, ids: np.ndarray, expected: np.ndarray
) -> None:
    """To 1e-4 of logits of up to 15: both sum in float32, in another order."""
    assert np.abs(expected).max() > 5
    for sequences in (ids[:1], ids[1:, :7], ids):
        (found,) = engine.run([sequences.astype(np.int32)])
        assert found.dtype == np.float32
        rows = slice(1, 2) if sequences.shape == (1, 7) else slice(len(sequences))
        np.testing.assert_allclose(found, expected[rows, : sequences.shape[1]], atol=1e-4, rtol=0)


def test_one_axis_is_one_sequence(engine: Engine, ids: np.ndarray) -> None:
    (one,) = engine.run([ids[0, :9]])
    assert one.shape == (1, 9, 4096)
    np.testing.assert_array_equal(one, engine.run([ids[:1, :9]])[0])


def test_calls_do_not_remember(engine: Engine, ids: np.ndarray) -> None:
    (before,) = engine.run([ids[:1, :20]])
    engine.run([ids[1:, :30]])
    np.testing.assert_array_equal(engine.run([ids[:1, :20]])[0], before)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_parts_of_a_sequence_equal_the_whole(
    engine: Engine, ids: np.ndarray, expected: np.ndarray, batch: int
) -> None:
    found = engine.logits(ids[:, :40], first=25, batch=batch)
    np.testing.assert_allclose(found, expected[:, 25:40], atol=1e-4, rtol=0)


def test_options_change_the_arithmetic(language_gguf: Path, ids: np.ndarray) -> None:
    exact = Engine(language_gguf, EXACT, threads=1).run([ids[:1, :64]])[0]
    for options in ({"kv_type": "f16"}, {"kv_type": "f32", "flash_attention": True}):
        found = Engine(language_gguf, options, threads=1).run([ids[:1, :64]])[0]
        error = np.abs(found - exact).max()
        assert 0 < error < 0.05, options


def test_ids_that_do_not_fit(engine: Engine) -> None:
    with pytest.raises(InputError, match="token ids must be 0 to 4095, these are 3 to 4096"):
        engine.run([np.array([3, 4096])])
    with pytest.raises(InputError, match="1025 tokens, and the model's context is 1024"):
        engine.run([np.zeros((1, 1025), np.int64)])
    with pytest.raises(InputError, match=r"takes token ids \[n\] or \[sequences, n\], not \[0\]"):
        engine.run([np.zeros(0, np.int64)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": 1, "kv": "f16"}, "unknown engine options: gpu, kv"),
        (
            {"kv_type": "q1", "repack": 1},
            "repack is 1, kv_type is 'q1'; kv_type is f32 or f16",
        ),
    ],
)
def test_wrong_options(language_gguf: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Engine(language_gguf, options, threads=1)


def test_damaged_files(language_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Each refusal says why, whoever took llama.cpp's log before; llama.cpp itself prints nothing."""
    Engine(language_gguf, {}, threads=1)
    functions = pytest.importorskip("llama_cpp").llama_cpp
    other = functions.llama_log_callback(lambda level, text, data: None)
    functions.llama_log_set(other, ctypes.c_void_p(0))
    whole = language_gguf.read_bytes()
    file = tmp_path / "bad.gguf"
    cases = {
        whole[: len(whole) // 2]: "data is not within the file bounds",
        whole[:5000]: "refuses it: ",
        b"PK\3\4" + whole[4:5000]: "no GGUF file: it begins with b'PK",
        b"GG": "no GGUF file",
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60): "refuses it: ",
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0): "refuses it: ",
    }
    for content, message in cases.items():
        file.write_bytes(content)
        with pytest.raises(BundleError, match=message):
            Engine(file, {}, threads=1)
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        Engine(tmp_path / "no.gguf", {}, threads=1)
    assert capfd.readouterr().err == ""
