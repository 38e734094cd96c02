"""What outliers in norms cost: this project's GGUF beside llama-quantize's, with and without them.

    python benchmarks/language_model_outliers.py --output benchmarks/results/language_model_outliers.md

DATA holds models/lm (a Llama as a Hugging Face directory), text/calibration.txt and text/test.txt.
``outlier_model.py`` says how outliers come into the model. --samples gives a quick run, whose figures say
little.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from build_language import HERE, SEQ_LEN, Workplace
from measure_int8 import Build
from measure_language import Judge
from outlier_model import FACTORS, SEED, SHARE, write_outliers
from pages import add_working_options, command_line, command_parser, publish, working_folder, write
from report_language import OURS, PEER, environment

from qcompile.targets.gguf.mixes import MIXES

PRECISIONS = ("q4_k_m", "q2_k")
PLAIN, OUTLIERS = "plain", "outliers"
SAME = 1e-4
"""How far logits of the two models may be from each other."""
GOAL = 1.1
"""Of this project's growth."""
NOTES = """\
{count} channels of the norms before attention and before the feed-forward layers, {share} of each norm's,
were multiplied by factors of {low:.0f} to {high:.0f} (uniform, seed {seed}), and the columns of the layers
that read them divided by the same, in float32. The final norm stays as it is: the tied table of embeddings
reads it. The largest difference of the two models' logits in PyTorch is {distance:.1e}.

Each model was built anew from its own directory, calibrated on the same text in sequences of {seq_len}
tokens; llama-quantize got the f32 file and the imatrix of that model. KL is the mean divergence of the file's
predictions in llama.cpp from those of its own model in PyTorch, in nats, with its standard error. Growth is
the KL with outliers by the KL without; the goal is that of {ours} is at most {goal}.

{text}."""


@dataclass(frozen=True)
class Measured:
    """A file.

    Args:
        bytes: Of it.
        kl: Mean divergence.
        error: Its standard error.
        build: What it took.
    """

    bytes: int
    kl: float
    error: float
    build: Build


@dataclass(frozen=True)
class Growth:
    """A precision by one tool, without and with outliers."""

    precision: str
    tool: str
    plain: Measured
    outliers: Measured

    @property
    def factor(self) -> float:
        """KL with outliers by KL without."""
        return self.outliers.kl / self.plain.kl


def benchmark(options: argparse.Namespace, folder: Path) -> tuple[list[Growth], str]:
    """Build and measure everything.

    Returns:
        The rows, and what one must know to read them.
    """
    model = options.data / "models" / "lm"
    changed = folder / OUTLIERS / "model"
    count = write_outliers(model, changed)
    models = {PLAIN: model, OUTLIERS: changed}
    judges = {name: _judge(m, folder / name, options) for name, m in models.items()}
    distance = judges[PLAIN].distance(judges[OUTLIERS])
    if not distance <= SAME:
        raise SystemExit(f"the models differ by {distance:.1e} in their logits, more than {SAME}")
    found = {
        name: _files(_place(m, folder / name, options), judges[name], options)
        for name, m in models.items()
    }
    rows = [Growth(*key, found[PLAIN][key], found[OUTLIERS][key]) for key in found[PLAIN]]
    notes = NOTES.format(
        count=count, share=f"{100 * SHARE:g} %", low=FACTORS[0], high=FACTORS[1], seed=SEED,
        distance=distance, seq_len=SEQ_LEN, text=judges[PLAIN].texts.summary(), ours=OURS, goal=GOAL,
    )  # fmt: skip
    return rows, notes


def _judge(model: Path, folder: Path, options: argparse.Namespace) -> Judge:
    folder.mkdir(parents=True, exist_ok=True)
    text = options.data / "text" / "test.txt"
    return Judge(model, text, SEQ_LEN, folder, reuse=options.reuse, samples=options.samples)


def _place(model: Path, folder: Path, options: argparse.Namespace) -> Workplace:
    text = options.data / "text" / "calibration.txt"
    return Workplace(model, text, folder, options.reuse, options.samples)


def _files(
    place: Workplace, judge: Judge, options: argparse.Namespace
) -> dict[tuple[str, str], Measured]:
    """Build and measure the files of one model, by precision and tool."""
    source, _ = place.bundle("f32")
    imatrix, _ = place.imatrix()
    found = {}
    for precision in options.precision:
        for tool, (file, build) in (
            (OURS, place.bundle(precision)),
            (PEER, place.peer(precision, source, imatrix)),
        ):
            figures = judge.figures(file, options.threads)
            kl, error = figures["kl"]["mean"], figures["errors"]["kl"]["mean"]
            found[precision, tool] = Measured(file.stat().st_size, kl, error, build)
    return found


def markdown(rows: list[Growth], notes: str, facts: dict[str, str]) -> str:
    """Return the page."""
    lines = ["# Language models with outliers in their norms", "", notes, ""]
    lines += ["|  | bytes | KL without | KL with outliers | growth | build s |"]
    lines += ["| --- | ---: | ---: | ---: | ---: | ---: |"]
    lines += [_line(row) for row in rows]
    lines += ["", "## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _line(row: Growth) -> str:
    missed = " missed" if row.tool == OURS and row.factor > GOAL else ""
    kls = " | ".join(f"{m.kl:.6f} ± {m.error:.6f}" for m in (row.plain, row.outliers))
    return (
        f"| {row.precision} {row.tool} | {row.outliers.bytes:,} | {kls} | {row.factor:.3f}{missed} "
        f"| {row.outliers.build.seconds:.0f} |"
    )


def as_json(rows: list[Growth], facts: dict[str, str]) -> str:
    """Return the same as data."""
    data: list[dict[str, Any]] = [asdict(row) | {"growth": row.factor} for row in rows]
    return json.dumps({"environment": facts, "rows": data}, indent=1) + "\n"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, default=HERE.parent.parent / "shared",
        help="folder with models/ and text/; default: shared/ beside the repository")  # fmt: skip
    add("--precision", nargs="+", choices=sorted(MIXES), default=PRECISIONS, metavar="P",
        help=f"default: {' '.join(PRECISIONS)}")  # fmt: skip
    add("--samples", type=int, metavar="N", help="sequences to calibrate on, and to measure on")
    add_working_options(parser)
    add("--output", type=Path, help="FILE.md; FILE.json comes beside it")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark; exit code 1 if a growth of this project's is above the goal."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    with working_folder(options.keep) as folder:
        rows, notes = benchmark(options, folder)
    facts = environment(command_line(arguments))
    publish(markdown(rows, notes, facts), options.output)
    if options.output is not None:
        write(options.output.with_suffix(".json"), as_json(rows, facts))
    return int(any(row.factor > GOAL for row in rows if row.tool == OURS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
