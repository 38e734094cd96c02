"""The results of ``language_model.py`` as markdown, with what one must know to repeat them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from measure_int8 import Build
from report_int8 import cpu, versions

COMMON = ("python", "qcompile", "torch", "numpy")
PACKAGES = ("llama-cpp-python", "gguf", "transformers", "tokenizers")
COLUMNS = (
    "", "bytes", "KL mean", "ratio", "KL median", "KL 99 %", "perplexity", "same top %",
    "build s", "peak MiB",
)  # fmt: skip
GOAL_COLUMNS = ("", "ratio", "goal", "second text", "bytes more %", "worse than llama-quantize")
WORSE = """\
The goal is for the first text. Worse: metrics of either text in which qcompile's file is worse by more
than llama-quantize's standard error."""
GOALS = {"q2_k": 0.65, "q3_k_m": 0.65, "q4_k_m": 0.65, "q5_k_m": 0.75}
"""Of the ratio of the mean KL; 1 for the others."""
BYTES = 0.001
SMALL = 1e-5
OURS, PEER = "qcompile", "llama-quantize"
NOTES = """\
Both start from the same Hugging Face directory and the same calibration text, in sequences of 256 tokens.
llama-quantize is llama.cpp's function of that name, called through llama-cpp-python with its defaults. It
gets a file in f32 that this project's emitter wrote and an imatrix of the calibration text: the mean
squares of the inputs of every matrix in the layers, from PyTorch's activations (`qcompile imatrix`). As with
llama-imatrix, neither the embedding nor the output layer is in it. Types of tensors are the same in both.

KL is the divergence of the file's predictions, in llama.cpp, from those of the original in PyTorch and
float32, in nats; figures and errors are those of `qcompile evaluate` (standard errors, which take
tokens of a sequence as dependent). The second half of each sequence of 256 is scored. The ratio is this
project's mean KL by llama-quantize's. The second text, pages.txt, is this repository's README.md,
CONTRIBUTING.md and docs/decisions at the commit below: English of another kind than the books that the
model was trained and calibrated on, with code and tables in it.

A build of qcompile is one process from start to end, calibration, imports and verification included;
llama-quantize's is the quantization alone. The machine, two cores, had up to five times as much other
work, so times say little but how they compare. With `--reuse` they are those of the run that built the file.
"""


@dataclass(frozen=True)
class Row:
    """A file.

    Args:
        bytes: Of it.
        figures: What ``measure_language`` found.
        build: What it took.
    """

    bytes: int
    figures: dict[str, Any]
    build: Build | None


@dataclass(frozen=True)
class Pair:
    """A precision: this project's file and llama-quantize's."""

    precision: str
    ours: Row
    theirs: Row

    @property
    def ratio(self) -> float:
        """Our mean KL by theirs."""
        return float(self.ours.figures["kl"]["mean"] / self.theirs.figures["kl"]["mean"])

    @property
    def goal(self) -> float:
        """What the ratio is to be at most."""
        return GOALS.get(self.precision, 1.0)

    def worse(self) -> list[str]:
        """Return the metrics in which ours is worse by more than their error."""
        ours, theirs = self.ours.figures, self.theirs.figures
        found = []
        for name, sign in (("perplexity", 1), ("same_top", -1)):
            if sign * (ours[name] - theirs[name]) > theirs["errors"][name]:
                found.append(name)
        kinds = ("mean", "median", "p99", "max")
        limits = {kind: theirs["kl"][kind] + theirs["errors"]["kl"][kind] for kind in kinds}
        return found + [f"KL {kind}" for kind in kinds if ours["kl"][kind] > limits[kind]]


@dataclass(frozen=True)
class Text:
    """All files on one text.

    Args:
        summary: What the text is.
        sha256: Of its token ids.
        floor: The original beside itself.
        exact: The file in f32.
        pairs: By precision.
    """

    summary: str
    sha256: str
    floor: dict[str, Any]
    exact: Row
    pairs: Sequence[Pair]


def markdown(texts: Sequence[Text], imatrix: Build, environment: dict[str, str]) -> str:
    """Return the whole page."""
    lines = ["# Language models beside llama-quantize", "", NOTES]
    cost = f"{imatrix.seconds:.0f} s and {imatrix.peak_mib:.0f} MiB"
    lines += [f"The imatrix took {cost}, once for all rows of llama-quantize.", ""]
    lines += ["## Goals", "", *table(GOAL_COLUMNS, _goals(*texts)), "", WORSE, ""]
    for number, text in enumerate(texts):
        lines += _section(text, costs=number == 0)
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in environment.items())]
    return "\n".join(lines) + "\n"


def _goals(first: Text, second: Text) -> list[list[str]]:
    return [_goal(*pairs) for pairs in zip(first.pairs, second.pairs, strict=True)]


def _goal(pair: Pair, other: Pair) -> list[str]:
    more = pair.ours.bytes / pair.theirs.bytes - 1
    missed = "" if pair.ratio <= pair.goal else " missed"
    worse = [*pair.worse(), *(f"{name} (second text)" for name in other.worse())]
    return [
        pair.precision, f"{pair.ratio:.3f}{missed}", f"{pair.goal:.2f}", f"{other.ratio:.3f}",
        f"{100 * more:+.3f}{'' if abs(more) <= BYTES else ' missed'}", ", ".join(worse) or "nothing",
    ]  # fmt: skip


def _section(text: Text, *, costs: bool) -> list[str]:
    columns = COLUMNS if costs else COLUMNS[:-2]
    rows = [_cells("f32", text.exact, None)]
    for pair in text.pairs:
        rows.append(_cells(f"{pair.precision} {OURS}", pair.ours, pair.ratio))
        rows.append(_cells(f"{pair.precision} {PEER}", pair.theirs, None))
    found = table(columns, [row[: len(columns)] for row in rows])
    return [f"## {text.summary.partition(':')[0]}", "", *_facts(text), "", *found, ""]


def _facts(text: Text) -> list[str]:
    figures, own = text.exact.figures, text.floor
    kl, deviation = own["kl"]["mean"], figures["errors"]["perplexity_reference"]
    perplexity = f"{figures['perplexity_reference']:.3f} ± {deviation:.2f}"
    return [
        f"{text.summary}; SHA-256 of the token ids {text.sha256[:16]}....",
        f"{figures['tokens']:,} predictions are scored; the original's perplexity is {perplexity}.",
        f"Beside itself, in another order of sums, its mean KL is {kl:.1e}, its same top {_share(own)} %.",
    ]


def _cells(name: str, row: Row, ratio: float | None) -> list[str]:
    kl, error = row.figures["kl"], row.figures["errors"]
    cost = ["", ""]
    if row.build is not None:
        cost = [f"{row.build.seconds:.0f}", f"{row.build.peak_mib:.0f}"]
    return [
        name,
        f"{row.bytes:,}",
        _nats(kl["mean"], error["kl"]["mean"]),
        "" if ratio is None else f"{ratio:.3f}",
        _nats(kl["median"]),
        _nats(kl["p99"]),
        f"{row.figures['perplexity']:.3f} ± {error['perplexity']:.2f}",
        f"{_share(row.figures)} ± {100 * error['same_top']:.2f}",
        *cost,
    ]


def _nats(value: float, error: float | None = None) -> str:
    digits = ".6f" if value > SMALL else ".1e"
    return f"{value:{digits}}" + (f" ± {error:{digits}}" if error is not None else "")


def _share(figures: dict[str, Any]) -> str:
    return f"{100 * figures['same_top']:.2f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a table, its first column to the left."""
    ruler = ["---"] + ["---:"] * (len(columns) - 1)
    return ["| " + " | ".join(line) + " |" for line in (columns, ruler, *rows)]


def environment(command: str) -> dict[str, str]:
    """Return what the numbers depend on."""
    facts = {"command": command, "commit": _commit(), "cpu": cpu()}
    return facts | _versions() | {name: metadata.version(name) for name in PACKAGES}


def _versions() -> dict[str, str]:
    return {name: value for name, value in versions().items() if name in COMMON}


def _commit() -> str:
    """Return the commit that the sources are of, and whether they have been changed since."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{git('rev-parse', '--short', 'HEAD')}{', with changes' if changed else ''}"
