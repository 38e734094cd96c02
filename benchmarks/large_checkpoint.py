"""A checkpoint larger than memory: its time and memory under a limit, beside llama-quantize.

    python benchmarks/large_checkpoint.py --work FOLDER --data shared --output FILE.md

A random bfloat16 checkpoint of Llama-2-7B's shape is written to FOLDER, with as many layers as
--gigabytes asks for; DATA holds models/lm (its tokenizer) and text/calibration.txt. All that is measured
runs in a process of its own under the limit, and reads its files from disk. FOLDER needs about 2.4 times
the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from float_gguf import write_float
from limited import Cost, forget, run_limited
from pages import command_line, command_parser, publish, tell, write
from random_checkpoint import Shape, write_checkpoint
from report_language import environment
from report_large import Build, Large, markdown

from qcompile.targets.gguf.mixes import MIXES

HERE = Path(__file__).resolve().parent
TARGET, PRECISION = "apple-m2", "q4_k_m"
SEQ_LEN, SEQUENCES = 256, 2
"""Of the text that the imatrix is made of: it decides which errors count, not how long rounding takes."""
ENCODERS = ("qcompile", "ggml")


def shape_of(gigabytes: float) -> Shape:
    """Return Llama-2-7B's shape with so many layers that the checkpoint is at least so large."""
    empty, one = (Shape(4096, 11008, 32, 32, layers).parameters for layers in (0, 1))
    layers = math.ceil((gigabytes * 1e9 / 2 - empty) / (one - empty))
    return Shape(4096, 11008, 32, 32, max(1, layers))


class Workplace:
    """Makes files in a folder and measures what makes them.

    Args:
        options: Of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.folder: Path = options.work
        self.limit = int(options.limit_gib * 2**30)
        self.model = self.folder / "checkpoint"
        self.data: Path = options.data

    def checkpoint(self, gigabytes: float) -> int:
        """Write the checkpoint; return its bytes."""
        tell("writing the checkpoint")
        shape = shape_of(gigabytes)
        return write_checkpoint(self.model, shape, self.data / "models" / "lm")

    def imatrix(self) -> tuple[Path, Cost]:
        """Write the imatrix for both."""
        file = self.folder / "imatrix.gguf"
        text = self.data / "text" / "calibration.txt"
        given = [
            "--calibrate",
            str(text),
            "--seq-len",
            str(SEQ_LEN),
            "--num-samples",
            str(SEQUENCES),
        ]
        return file, self._qcompile(
            ["imatrix", str(self.model), *given, "-o", str(file), "--force"]
        )

    def bundle(self, encoder: str, imatrix: Path) -> Build:
        """Build this project's bundle."""
        folder = self.folder / f"{encoder}.qc"
        command = [
            "build",
            str(self.model),
            "--target",
            TARGET,
            "-p",
            PRECISION,
            "--encoder",
            encoder,
        ]
        cost = self._qcompile([*command, "--imatrix", str(imatrix), "-o", str(folder), "--force"])
        size = (folder / "model.gguf").stat().st_size
        shutil.rmtree(folder)
        return Build(
            f"qcompile, --encoder {encoder}", size, cost, json.loads(cost.output)["seconds"]
        )

    def peer(self, imatrix: Path) -> Build:
        """Run llama-quantize."""
        source, file = self.folder / "bf16.gguf", self.folder / "peer.gguf"
        tell("writing the file that llama-quantize reads")
        write_float(self.model, source)
        given = [str(source), str(imatrix), str(MIXES[PRECISION].file_type), str(file)]
        forget([source])
        tell("llama-quantize")
        cost = run_limited([sys.executable, str(HERE / "peers_gguf.py"), *given], self.limit)
        size = file.stat().st_size
        source.unlink()
        file.unlink()
        return Build("llama-quantize", size, cost, {})

    def _qcompile(self, arguments: list[str]) -> Cost:
        tell(shlex.join(["qcompile", *arguments]))
        forget(sorted(self.model.glob("*.safetensors")))
        return run_limited([sys.executable, "-m", "qcompile", *arguments, "--json"], self.limit)


def benchmark(options: argparse.Namespace) -> Large:
    """Build and measure everything; files are removed as soon as they are measured."""
    place = Workplace(options)
    place.folder.mkdir(parents=True, exist_ok=True)
    try:
        size = place.checkpoint(options.gigabytes)
        imatrix, cost = place.imatrix()
        ours = [place.bundle(encoder, imatrix) for encoder in options.encoder]
        return Large(size, options.limit_gib, cost, ours, place.peer(imatrix))
    finally:
        if not options.keep:
            shutil.rmtree(place.model, ignore_errors=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for all files")
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--gigabytes", type=float, default=13.0, help="of the checkpoint (10^9 bytes)")
    add("--limit-gib", type=float, default=3.0, help="of memory, for each process that is measured")
    add("--encoder", nargs="+", choices=ENCODERS, default=ENCODERS)
    add("--keep", action="store_true", help="leave the checkpoint in FOLDER")
    add("--output", type=Path, help="FILE.md; FILE.json beside it")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    found = benchmark(options)
    facts = environment(command_line(arguments))
    publish(markdown(found, facts), options.output)
    if options.output:
        data = json.dumps({"environment": facts, **asdict(found)}, indent=1)
        write(options.output.with_suffix(".json"), data + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
