"""The results of ``mixed_precision_gguf.py`` as markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report_language import OURS, PEER, Row, table

GOALS = {"q2_k": 0.5, "q3_k_m": 0.5, "q4_k_m": 0.5, "q5_k_m": 0.6}
"""Of the ratio of the mean KL at the same bytes."""
FEWER = 12.0
"""Per cent of bytes at the same KL."""
COLUMNS = (
    "", "bytes", "KL mean", "ratio", "goal", "predicted", "perplexity", "same top %", "second text",
)  # fmt: skip
SMALLER = ("", "bytes", "KL mean", "theirs", "fewer bytes %", "goal", "second text")
NOTES = """\
Both start from the same Hugging Face directory and the same calibration text, in sequences of 256 tokens.
llama-quantize is llama.cpp's function of that name, called through llama-cpp-python with its defaults; it
gets a file in f32 that this project's emitter wrote and an imatrix of the same text (`qcompile imatrix`).
qcompile gets `--max-size` with the bytes of llama-quantize's file. All files run in llama.cpp, unchanged.

KL is the divergence of the file's predictions, in llama.cpp, from those of the original in PyTorch and
float32, in nats a token, on text that no build has seen; figures and errors are those of `qcompile evaluate`.
Predicted is what the plan says of its weights: llama.cpp's rounding of activations, which no choice of
formats removes, comes on top. The second text is this repository's pages, English of another kind than the
books that the model was trained and calibrated on; the number is the ratio of the mean KL there.
"""


@dataclass(frozen=True)
class Side:
    """A file.

    Args:
        file: Where it lies.
        row: Its bytes and figures on the first text.
        damage: KL divergence that its plan predicted.
    """

    file: Path
    row: Row
    damage: float | None = None

    @property
    def kl(self) -> float:
        """Its mean KL divergence."""
        return float(self.row.figures["kl"]["mean"])


@dataclass(frozen=True)
class Found:
    """A mix.

    Args:
        precision: Its name.
        ours: This project's file of no more bytes.
        smaller: This project's file of no more KL divergence.
        theirs: llama-quantize's.
        elsewhere: Figures on the second text, of these three.
    """

    precision: str
    ours: Side
    smaller: Side
    theirs: Side
    elsewhere: Sequence[dict[str, Any]]

    @property
    def ratio(self) -> float:
        """Of the mean KL at the same bytes."""
        return self.ours.kl / self.theirs.kl

    @property
    def fewer(self) -> float:
        """Per cent of bytes at the same KL."""
        return 100 * (1 - self.smaller.row.bytes / self.theirs.row.bytes)

    def ratio_elsewhere(self, index: int) -> float:
        """Of the mean KL on the second text."""
        return float(self.elsewhere[index]["kl"]["mean"] / self.elsewhere[2]["kl"]["mean"])


def markdown(found: Sequence[Found], texts: Sequence[str], environment: dict[str, str]) -> str:
    """Return the whole page."""
    same = [row for one in found for row in _same_bytes(one)]
    lines = ["# Formats under a budget beside llama-quantize", "", NOTES]
    lines += [f"First text: {texts[0]}.", "", f"Second text: {texts[1]}.", ""]
    lines += ["## At the same bytes", "", *table(COLUMNS, same), ""]
    lines += [
        "## At the same KL divergence",
        "",
        *table(SMALLER, [_same_kl(one) for one in found]),
        "",
    ]
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in environment.items())]
    return "\n".join(lines) + "\n"


def _same_bytes(found: Found) -> list[list[str]]:
    goal = GOALS[found.precision]
    missed = "" if found.ratio <= goal else " missed"
    ours = [f"{found.ratio:.3f}{missed}", f"{goal:.2f}"]
    elsewhere = f"{found.ratio_elsewhere(0):.3f}"
    return [
        _cells(f"{found.precision} {OURS}", found.ours, ours, elsewhere),
        _cells(f"{found.precision} {PEER}", found.theirs, ["", ""], ""),
    ]


def _cells(name: str, side: Side, goal: list[str], elsewhere: str) -> list[str]:
    figures, errors = side.row.figures, side.row.figures["errors"]
    return [
        name,
        f"{side.row.bytes:,}",
        f"{side.kl:.6f} ± {errors['kl']['mean']:.6f}",
        *goal,
        "" if side.damage is None else f"{side.damage:.6f}",
        f"{figures['perplexity']:.3f} ± {errors['perplexity']:.2f}",
        f"{100 * figures['same_top']:.2f} ± {100 * errors['same_top']:.2f}",
        elsewhere,
    ]


def _same_kl(found: Found) -> list[str]:
    missed = "" if found.fewer >= FEWER else " missed"
    return [
        found.precision,
        f"{found.smaller.row.bytes:,}",
        f"{found.smaller.kl:.6f}",
        f"{found.theirs.kl:.6f}",
        f"{found.fewer:.1f}{missed}",
        f"{FEWER:g}",
        f"{found.ratio_elsewhere(1):.3f}",
    ]
