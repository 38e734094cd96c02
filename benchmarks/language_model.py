"""GGUF of this project beside llama-quantize: the same model, mix and calibration text.

    python benchmarks/language_model.py --data shared --output benchmarks/results/language_model.md

DATA holds models/lm (a Hugging Face directory), text/calibration.txt and text/test.txt. llama-quantize is
its function in llama-cpp-python's library; it gets the f32 file and the imatrix that this project writes.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from measure_int8 import Build, run_measured
from measure_language import Judge
from report_language import Pair, Row, Text, environment, markdown

from qcompile.targets.gguf.mixes import MIXES

HERE = Path(__file__).resolve().parent
TARGET = "apple-m2"
PRECISIONS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "iq2_xs")
SEQ_LEN = 256
PAGES = ("README.md", "CONTRIBUTING.md", "docs/decisions/*.md")
"""The second text: this repository's pages."""


class Workplace:
    """Builds files in a folder, or takes what an earlier run left there.

    Args:
        options: Of the command line.
        folder: For all files.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.folder, self.reuse = folder, options.reuse
        self.model = options.data / "models" / "lm"
        self.calibration = options.data / "text" / "calibration.txt"
        self.test = options.data / "text" / "test.txt"

    def bundle(self, precision: str) -> tuple[Path, Build]:
        """Build this project's bundle; f32 is the same for both."""
        folder = self.folder / f"{precision}.qc"
        command = [
            str(self.model),
            "--target",
            TARGET,
            "-p",
            precision,
            "-o",
            str(folder),
            "--force",
        ]
        if precision != "f32":
            command += self._calibrated()
        return folder / "model.gguf", self._qcompile(command, folder / "model.gguf", precision)

    def imatrix(self) -> tuple[Path, Build]:
        """Write the imatrix for llama-quantize."""
        file = self.folder / "imatrix.gguf"
        command = ["imatrix", str(self.model), *self._calibrated(), "-o", str(file), "--force"]
        return file, self._qcompile(command, file, "imatrix")

    def peer(self, precision: str, source: Path, imatrix: Path) -> tuple[Path, Build]:
        """Run llama-quantize."""
        folder = self.folder / f"{precision}.llama.cpp"
        folder.mkdir(exist_ok=True)
        file, script = folder / "model.gguf", str(HERE / "peers_gguf.py")
        given = [str(source), str(imatrix), str(MIXES[precision].file_type), str(file)]
        return file, self._measured([sys.executable, script, *given], file, folder.name)

    def pages(self) -> Path:
        """Join this repository's pages to one text."""
        files = [file for pattern in PAGES for file in sorted(HERE.parent.glob(pattern))]
        text = self.folder / "pages.txt"
        text.write_text("\n".join(f.read_text(encoding="utf-8") for f in files), encoding="utf-8")
        return text

    def _calibrated(self) -> list[str]:
        return ["--calibrate", str(self.calibration), "--seq-len", str(SEQ_LEN)]

    def _qcompile(self, arguments: list[str], result: Path, name: str) -> Build:
        return self._measured(
            [sys.executable, "-m", "qcompile", *arguments, "--json"], result, name
        )

    def _measured(self, command: list[str], result: Path, name: str) -> Build:
        """Run a command that makes a file, in a process of its own."""
        record = self.folder / f"{name}.json"
        if self.reuse and result.exists() and record.exists():
            return Build(**json.loads(record.read_text()))
        print(f"building {name}", file=sys.stderr, flush=True)
        build = run_measured(command)
        record.write_text(json.dumps(asdict(build)))
        return build


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build and measure everything."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Workplace(options, folder)
    source, _ = place.bundle("f32")
    imatrix, cost = place.imatrix()
    built = {p: (place.bundle(p), place.peer(p, source, imatrix)) for p in options.precision}
    texts = []
    for file in (place.test, place.pages()):
        judge = Judge(place.model, file, SEQ_LEN, folder, reuse=options.reuse)
        texts.append(measure(judge, source, built, options.threads))
    return {"texts": texts, "imatrix": cost}


def measure(
    judge: Judge,
    source: Path,
    built: dict[str, tuple[tuple[Path, Build], tuple[Path, Build]]],
    threads: int,
) -> Text:
    """Measure all files on one text."""

    def row(file: Path, build: Build | None) -> Row:
        return Row(file.stat().st_size, judge.figures(file, threads), build)

    exact = row(source, None)
    pairs = [Pair(p, row(*ours), row(*theirs)) for p, (ours, theirs) in built.items()]
    return Text(judge.texts.summary(), judge.texts.sha256, judge.floor(), exact, pairs)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="P",
        help=f"of {', '.join(PRECISIONS)}; all by default")  # fmt: skip
    add("--threads", type=int, default=1, help="more wait for each other where others work")
    add("--keep", type=Path, help="leave all files in KEEP/")
    add("--reuse", action="store_true", help="take what an earlier --keep left there")
    add("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        found = benchmark(options, options.keep or Path(temporary))
    command = shlex.join(["python", "benchmarks/language_model.py", *arguments])
    page = markdown(found["texts"], found["imatrix"], environment(command))
    print(page)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
