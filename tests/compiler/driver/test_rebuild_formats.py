"""An example in every format, made again in another process, folder, hash order and thread count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[3] / "examples"
RESNET, LSTM = EXAMPLES / "resnet.py", EXAMPLES / "audio_lstm.py"
BOOKS = EXAMPLES / "language_model"
TEXTS = ("--calibrate", str(BOOKS / "calibration.txt"))
BUILDS = {
    "onnx": (RESNET, "--target", "x86-avx512-vnni", "--max-drop", "0.7"),
    "onnx, a recurrent network": (LSTM, "--target", "pixel-8"),
    "onnx, formats of a budget": (RESNET, "--target", "x86-avx2", "--target-bpw", "6"),
    "coreml": (RESNET, "--target", "apple-m2"),
    "coreml, palettes": (LSTM, "--target", "apple-a14", "-p", "palette-4", "--no-evaluate"),
    "tvm": (RESNET, "--target", "x86-avx2", "--format", "tvm", "--objects"),
    "gguf": (BOOKS / "books-7m", "--target", "host", "-p", "q4_k_m", *TEXTS, "--num-samples", "8",
             "--seq-len", "128"),
    "gguf, nearest, keys and values in q8_0": (BOOKS / "books-7m", "--target", "host", "-p", "q8_0",
                                               "--kv-type", "q8_0"),
}  # fmt: skip
PACKAGES = {"onnx": "onnxruntime", "coreml": "coremltools", "tvm": "tvm", "gguf": "llama_cpp"}


def qcompile(folder: Path, *arguments: str | Path, threads: int, seed: int) -> dict[str, object]:
    """Run a verb with --json in a process and a folder of its own, with no cache of another run."""
    folder.mkdir(parents=True)
    own = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(seed),
        "XDG_CACHE_HOME": str(folder),
    }
    env = {**os.environ, **own}
    command = [sys.executable, "-P", "-m", "qcompile", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", BUILDS)
def test_every_byte(name: str, tmp_path: Path) -> None:
    format = name.partition(",")[0]
    pytest.importorskip(PACKAGES[format])
    model, *options = BUILDS[name]
    built = tmp_path / "a" / "model.qc"
    qcompile(built.parent, model, *options, "-o", built, threads=1, seed=1)
    assert json.loads((built / "manifest.json").read_text())["format"] == format

    given = TEXTS if "--calibrate" in options else ()
    again = qcompile(
        tmp_path / "else" / "where", "rebuild", built, "--model", model, *given, threads=2, seed=2
    )
    assert again["differences"] == []
    assert again["identical"] is True
