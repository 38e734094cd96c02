"""GGUF of this project beside llama-quantize: the same model, mix and calibration text.

    python benchmarks/language_model.py --data shared --output benchmarks/results/language_model.md

DATA holds models/lm (a Hugging Face directory), text/calibration.txt and text/test.txt. llama-quantize is
its function in llama-cpp-python's library; it gets the f32 file and the imatrix that this project writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from build_language import HERE, SEQ_LEN, Workplace
from measure_int8 import Build
from measure_language import Judge
from pages import add_working_options, command_line, command_parser, publish, working_folder
from report_language import Pair, Row, Text, environment, markdown

PRECISIONS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs", "iq2_xs")
PAGES = ("README.md", "CONTRIBUTING.md", "docs/decisions/*.md")
"""The second text: this repository's pages."""


def benchmark(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build and measure everything."""
    folder.mkdir(parents=True, exist_ok=True)
    model, text = options.data / "models" / "lm", options.data / "text"
    place = Workplace(model, text / "calibration.txt", folder, options.reuse)
    source, _ = place.bundle("f32")
    imatrix, cost = place.imatrix()
    built = {p: (place.bundle(p), place.peer(p, source, imatrix)) for p in options.precision}
    texts = []
    for file in (text / "test.txt", pages(folder / "pages.txt")):
        judge = Judge(model, file, SEQ_LEN, folder, reuse=options.reuse)
        texts.append(measure(judge, source, built, options.threads))
    return {"texts": texts, "imatrix": cost}


def pages(text: Path) -> Path:
    """Join this repository's pages to one text."""
    files = [file for pattern in PAGES for file in sorted(HERE.parent.glob(pattern))]
    text.write_text("\n".join(f.read_text(encoding="utf-8") for f in files), encoding="utf-8")
    return text


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
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="P",
        help=f"of {', '.join(PRECISIONS)}; all by default")  # fmt: skip
    add_working_options(parser)
    add("--output", type=Path, help="FILE.md")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with working_folder(options.keep) as folder:
        found = benchmark(options, folder)
    page = markdown(found["texts"], found["imatrix"], environment(command_line(arguments)))
    publish(page, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
