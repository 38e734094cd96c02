"""Does ``qcompile rebuild`` give the same bytes, for every example and format?

Each bundle is built with one thread, and made again in another process, folder and order of hashes with two;
neither finds anything in a cache.
Prints a row a bundle; the exit code is 1 if a byte differs.

python benchmarks/rebuild_examples.py [resnet ...]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = ("audio_lstm", "detector", "mobilenet_v2", "resnet", "sentence_embeddings")
FORMATS = {"onnx": "x86-avx512-vnni", "coreml": "apple-m2", "tvm": "x86-avx2"}
LANGUAGE = EXAMPLES / "language_model" / "books-7m"
TEXTS = ("--calibrate", str(EXAMPLES / "language_model" / "calibration.txt"))


def qcompile(folder: Path, *arguments: str | Path, threads: int, seed: int) -> dict[str, Any]:
    """Run a verb with --json in a process of its own; return the data."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": str(seed),
        "XDG_CACHE_HOME": str(folder),
    }
    env = {**os.environ, **own}
    command = [sys.executable, "-P", "-m", "qcompile", *map(str, arguments), "--json"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rebuilt(model: Path, given: tuple[str, ...], *options: str) -> tuple[str, bool]:
    """Build a bundle twice; return its row, and whether every byte is the same."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "a" / "model.qc"
        built = qcompile(bundle.parent, model, *options, *given, "-o", bundle, threads=1, seed=1)
        if "manifest" not in built:
            raise SystemExit(f"{model.stem}: {built['error']}")
        elsewhere = Path(folder) / "b" / "c"
        again = qcompile(elsewhere, "rebuild", bundle, "--model", model, *given, threads=2, seed=2)
        manifest = built["manifest"]
        differing = ", ".join(row["what"] for row in again["differences"]) or "none"
        size = sum(file["bytes"] for file in manifest["files"].values())
        cells = [model.stem, manifest["target"], f"{manifest['format']} {manifest['precision']}",
                 str(len(manifest["files"]) + 1), f"{size:,}", differing]  # fmt: skip
        return f"| {' | '.join(cells)} |", again["identical"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="of the examples; all by default")
    wanted = parser.parse_args().models or [*MODELS, "language_model"]
    print("| example | target | format | files | bytes | files that differ |")
    print("| --- | --- | --- | ---: | ---: | --- |")
    same = []
    for name in sorted({*wanted} & {*MODELS}):
        for format, target in FORMATS.items():
            options = ("--target", target, "--format", format, "--no-evaluate")
            row, identical = rebuilt(EXAMPLES / f"{name}.py", (), *options)
            print(row, flush=True)
            same.append(identical)
    if "language_model" in wanted:
        for precision, given in (("q4_k_m", TEXTS), ("iq3_xxs", TEXTS), ("q8_0", ())):
            row, identical = rebuilt(LANGUAGE, given, "--target", "host", "-p", precision)
            print(row, flush=True)
            same.append(identical)
    raise SystemExit(not all(same))


if __name__ == "__main__":
    main()
