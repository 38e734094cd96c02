"""Uniform formats and plans side by side: rows, the two comparisons, and the page of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import numpy as np
from measure_int8 import agreement, top1
from report_int8 import cpu, versions

OURS = "qcompile"
MIXED = "mixed"
POINTS = 0.5
"""Of top-1 that a package may lose in the second comparison."""
COLUMNS = ("weights", "tool", "bytes", "top-1 %", "agreement %", "KL, nats", "build s", "formats")


@dataclass(frozen=True)
class Row:
    """One artifact.

    Args:
        weights: The uniform format, or what the plan was made for.
        tool: Who made it.
        bytes: Of the artifact.
        top1: Percent.
        agreement: Percent of images for which it names the class that the float model names.
        kl: Mean KL divergence from the float model's predictions.
        seconds: Of the build.
        formats: How many weights have which, of a plan.
    """

    weights: str
    tool: str
    bytes: int
    top1: float
    agreement: float
    kl: float
    seconds: float
    formats: str = ""

    @property
    def name(self) -> str:
        """For sentences."""
        return f"{self.weights} by {self.tool}"

    @property
    def mixed(self) -> bool:
        """Whether it is of a plan."""
        return self.weights.startswith(MIXED)


def row(
    weights: str,
    tool: str,
    size: int,
    logits: np.ndarray,
    reference: np.ndarray,
    labels: np.ndarray,
    seconds: float,
    formats: str = "",
) -> Row:
    """Return what is said of an artifact."""
    found = top1(logits, labels), agreement(logits, reference), kl(logits, reference)
    return Row(weights, tool, size, *found, seconds, formats)


def kl(logits: np.ndarray, reference: np.ndarray) -> float:
    """Return the mean KL divergence of the softmax from the reference's, in nats."""
    first, second = (_logs(values.astype(np.float64)) for values in (reference, logits))
    return float((np.exp(first) * (first - second)).sum(1).mean())


def _logs(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def page(
    title: str,
    notes: str,
    rows: Sequence[Row],
    float_top1: float,
    sizes: Mapping[str, str],
    facts: Mapping[str, str],
) -> str:
    """Return the whole page.

    Args:
        title: Of the page.
        notes: What one must know to read it.
        rows: All artifacts.
        float_top1: Of PyTorch.
        sizes: For each plan made for a size, the name of the uniform row whose bytes it had.
        facts: The environment.
    """
    lines = [f"# {title}", "", notes, f"Float32 in PyTorch: top-1 {float_top1:.2f} %.", ""]
    lines += table(rows)
    lines += ["", "## At the bytes of uniform formats", "", *at_sizes(rows, sizes)]
    lines += [
        "",
        f"## The smallest within {POINTS} points of top-1",
        "",
        *smallest(rows, float_top1),
    ]
    lines += ["", "## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as the lines of a markdown table."""
    ruler = ["---", "---", *["---:"] * 5, "---"]
    cells = [
        [r.weights, r.tool, f"{r.bytes:,}", f"{r.top1:.2f}", f"{r.agreement:.2f}", f"{r.kl:.5f}",
         f"{r.seconds:.1f}", r.formats]
        for r in rows
    ]  # fmt: skip
    return ["| " + " | ".join(line) + " |" for line in [list(COLUMNS), ruler, *cells]]


def at_sizes(rows: Sequence[Row], sizes: Mapping[str, str]) -> list[str]:
    """Return a line a plan: how much of what the uniform format loses it wins back."""
    by_name = {r.name: r for r in rows}
    found = []
    for plan, uniform in sizes.items():
        ours, other = by_name[plan], by_name[uniform]
        lost, still = 100 - other.agreement, 100 - ours.agreement
        share = (lost - still) / lost if lost else 0.0
        verdict = "kept" if share >= 1 / 3 and ours.bytes <= other.bytes else "missed"
        found.append(
            f"- {other.name}, {other.bytes:,} bytes: agreement {other.agreement:.2f} %, the plan of "
            f"{ours.bytes:,} bytes {ours.agreement:.2f} %: {100 * share:.0f} % of the loss is won back (a "
            f"third is the goal: {verdict}); KL divergence {ours.kl:.5f} of {other.kl:.5f}, ratio "
            f"{ours.kl / other.kl:.2f}"
        )
    return found


def smallest(rows: Sequence[Row], float_top1: float) -> list[str]:
    """Return the smallest of each tool that keeps top-1."""
    kept = [r for r in rows if r.top1 >= float_top1 - POINTS]
    plans = min((r for r in kept if r.mixed), key=lambda r: r.bytes, default=None)
    found = []
    for tool in dict.fromkeys(r.tool for r in rows):
        uniform = [r for r in kept if r.tool == tool and not r.mixed]
        if not uniform:
            found.append(f"- {tool}: no uniform format does")
            continue
        best = min(uniform, key=lambda r: r.bytes)
        ratio = f"; the plan has {plans.bytes / best.bytes:.3f} of it" if plans else ""
        found.append(
            f"- {tool}, uniform: {best.weights}, {best.bytes:,} bytes, {best.top1:.2f} %{ratio}"
        )
    if plans is not None:
        found.insert(0, f"- {plans.name}: {plans.bytes:,} bytes, {plans.top1:.2f} %")
    return found


def environment(command: str, images: int, packages: Sequence[str]) -> dict[str, str]:
    """Return what the numbers depend on."""
    installed = {d.name: d.version for d in metadata.distributions()}
    extra = {name: installed[name] for name in packages if name in installed}
    kept = {n: v for n, v in versions().items() if n in ("python", "qcompile", "torch", "numpy")}
    return {"command": command, "cpu": cpu(), "images": f"{images:,}"} | kept | extra
