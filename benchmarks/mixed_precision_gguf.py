"""Formats chosen under a budget beside llama.cpp's mixes: the same model, bytes and calibration text.

    python benchmarks/mixed_precision_gguf.py --data shared --output PAGE.md

DATA holds models/lm (a Hugging Face directory), text/calibration.txt and text/test.txt. For each mix: this
project's file of no more bytes (`--max-size`), and its smallest file found whose KL divergence on the test
text is no larger than llama-quantize's.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from build_language import SEQ_LEN, Workplace
from language_model import pages
from measure_language import Judge
from pages import command_line, publish, working_folder
from report_language import Row, environment
from report_mixed_gguf import Found, Side, markdown

PRECISIONS = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m")
CLOSE = 0.98
"""Of the peer's KL divergence: where the search aims."""
GRID = 20_000
STEP = 32
"""Bytes to which sizes are rounded: GGUF's alignment."""


@dataclass
class Search:
    """This project's files of any size, and what they measure on the first text.

    Args:
        place: Builds them.
        judge: Measures them.
        threads: Of llama.cpp.
        front: Bytes and predicted KL divergence of the best plans of all sizes.
        tries: Builds at most in the search for the smallest file of a KL divergence.
        known: By their limit.
    """

    place: Workplace
    judge: Judge
    threads: int
    front: Sequence[tuple[int, float]]
    tries: int
    known: dict[int, Side] = field(default_factory=dict)

    def of(self, size: int) -> Side:
        """Return the file of so many bytes at most."""
        if size not in self.known:
            file, build = self.place.budget(size)
            row = Row(file.stat().st_size, self.judge.figures(file, self.threads), build)
            plan = json.loads((file.parent / "manifest.json").read_text())["plan"]
            self.known[size] = Side(file, row, plan["damage"])
        return self.known[size]

    def smallest(self, kl: float) -> Side:
        """Return the smallest file found whose KL divergence is so much at most."""
        for _ in range(self.tries):
            size = self._guess(CLOSE * kl)
            if size in self.known:
                break
            self.of(size)
        return min((s for s in self.known.values() if s.kl <= kl), key=lambda s: s.row.bytes)

    def _guess(self, kl: float) -> int:
        """Return the size at which predictions, corrected by what was measured, meet a KL divergence."""
        sizes = np.linspace(self.front[0][0], self.front[-1][0], GRID)
        predicted = np.interp(sizes, *_logarithms(self.front))
        known = sorted((s.row.bytes, s.kl / s.damage) for s in self.known.values() if s.damage)
        expected = predicted + np.interp(sizes, *_logarithms(known))
        return round(sizes[expected <= math.log(kl)][0] / STEP) * STEP


def _logarithms(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """Return places, and logarithms of what is there."""
    return [at for at, _ in points], [math.log(value) for _, value in points]


def benchmark(options: argparse.Namespace, folder: Path) -> str:
    """Build and measure everything; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    model, text = options.data / "models" / "lm", options.data / "text"
    place = Workplace(model, text / "calibration.txt", folder, options.reuse)
    judges = [
        Judge(model, file, SEQ_LEN, folder, reuse=options.reuse)
        for file in (text / "test.txt", pages(folder / "pages.txt"))
    ]
    found = list(compare(place, judges, options))
    summaries = [judge.texts.summary() for judge in judges]
    return markdown(found, summaries, environment(command_line(sys.argv[1:])))


def compare(place: Workplace, judges: list[Judge], options: argparse.Namespace) -> Iterator[Found]:
    """Give what was found for each mix."""
    first, second = judges
    source, _ = place.bundle("f32")
    imatrix, _ = place.imatrix()
    theirs = {}
    for precision in options.precision:
        file, build = place.peer(precision, source, imatrix)
        figures = first.figures(file, options.threads)
        theirs[precision] = Side(file, Row(file.stat().st_size, figures, build))
    search = Search(place, first, options.threads, place.front(), options.tries)
    for side in theirs.values():
        search.of(side.row.bytes)
    for precision, side in theirs.items():
        ours = search.of(side.row.bytes)
        smaller = search.smallest(side.kl)
        elsewhere = [second.figures(s.file, options.threads) for s in (ours, smaller, side)]
        yield Found(precision, ours, smaller, side, elsewhere)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, metavar="P",
        help=f"of {', '.join(PRECISIONS)}; all by default")  # fmt: skip
    add(
        "--tries",
        type=int,
        default=2,
        help="builds for the same KL divergence, at most; else known ones",
    )
    add("--threads", type=int, default=1, help="more wait for each other where others work")
    add("--keep", type=Path, help="leave all files in KEEP/")
    add("--reuse", action="store_true", help="take what an earlier --keep left there")
    add("--output", type=Path, help="FILE.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with working_folder(options.keep) as folder:
        publish(benchmark(options, folder), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
