"""The results of ``coreml_vision.py`` as markdown, with what one must know to repeat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from report_int8 import cpu, versions

OURS = "qcompile"
PACKAGES = ("coremltools", "scikit-learn", "kmeans1d")
COLUMNS = (
    "format", "tool", "top-1 %", "agreement %", "SQNR dB", "package bytes", "weight.bin", "build s",
    "time / PyTorch",
)  # fmt: skip
NOTES = """\
Agreement and SQNR are with the logits of the float32 model in PyTorch, over the test images. All
packages are run by the same reference interpreter on Linux: what it computes is what MIL specifies,
not what a Neural Engine makes of it.

All rows of coremltools start from the fp16 package that qcompile wrote, and see no images, because none
of its weight formats takes any; qcompile sees the 512 calibration images. coremltools leaves weights
of up to 2048 elements in fp16; in the rows `all weights` its `weight_threshold` is 0. int4 has a scale
for each block of 32 weights. Palettes are by k-means, with a table for each 16 output channels, or one
for the tensor (`per tensor`). With `enable_per_channel_scale` coremltools 9.0 stores a table for each
input channel, hence its bytes, and leaves a weight that its groups do not divide (the classifier of
MobileNetV2 has 10 channels) divided by its scales.

A build of qcompile includes its verification, not the tracing of the model; one of coremltools is to
load, to compress and to save. The last column is the interpreter's time for a batch beside eager
PyTorch's in float32, one thread each, the median over batches that go through all rows in turn. All
seconds are of one run on a shared machine.
"""


@dataclass(frozen=True)
class Row:
    """One line of a table; closeness is with the float model."""

    format: str
    tool: str
    top1: float
    agreement: float
    sqnr_db: float
    bytes: int
    weight_bytes: int
    seconds: float
    slowdown: float


@dataclass(frozen=True)
class Result:
    """What one model gave.

    Args:
        model: Its name.
        float_top1: Of PyTorch.
        float_seconds: That PyTorch took for all images.
        rows: Of all packages.
        failures: Why the others were not built, by row.
    """

    model: str
    float_top1: float
    float_seconds: float
    rows: Sequence[Row]
    failures: Mapping[str, str]


def markdown(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return the whole page."""
    lines = ["# Core ML vision models beside coremltools.optimize", "", NOTES]
    for result in results:
        lines += [f"## {result.model}", "", *table(result), "", *verdict(result.rows), ""]
        lines += [f"Not built: {n}: {' '.join(w.split())}\n" for n, w in result.failures.items()]
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def table(result: Result) -> list[str]:
    """Return the rows as the lines of a markdown table, the float model first."""
    ruler = ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2)
    first = ["float32", "PyTorch", f"{result.float_top1:.2f}", *[""] * 5]
    first.append(f"{result.float_seconds:.1f} s")
    lines = [COLUMNS, ruler, first, *map(cells, result.rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def cells(row: Row) -> list[str]:
    """Return one row as text."""
    quality = [f"{value:.2f}" for value in (row.top1, row.agreement, row.sqnr_db)]
    sizes = [f"{row.bytes:,}", f"{row.weight_bytes:,}"]
    return [row.format, row.tool, *quality, *sizes, f"{row.seconds:.1f}", f"{row.slowdown:.2f}"]


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return where a peer is ahead of this project in its format, a line each."""
    ours = {row.format: row for row in rows if row.tool == OURS}
    peers = [row for row in rows if row.tool != OURS and row.format in ours]
    found = [
        f"- {row.format}, {row.tool}: {', '.join(ahead)}"
        for row in peers
        if (ahead := _ahead(row, ours[row.format]))
    ]
    if not found:
        return [f"No row of a peer is ahead of {OURS} in agreement, SQNR or bytes."]
    return [f"Ahead of {OURS}:", "", *found]


def _ahead(peer: Row, ours: Row) -> list[str]:
    found = []
    if peer.agreement > ours.agreement:
        found.append(f"agreement by {peer.agreement - ours.agreement:.2f} points")
    if peer.sqnr_db > ours.sqnr_db:
        found.append(f"SQNR by {peer.sqnr_db - ours.sqnr_db:.2f} dB")
    if peer.bytes < ours.bytes:
        found.append(f"{ours.bytes - peer.bytes:,} bytes")
    return found


def environment(command: str, images: int, batch: int) -> dict[str, str]:
    """Return what the numbers depend on."""
    installed = {d.name: d.version for d in metadata.distributions()}
    extra = {name: installed[name] for name in PACKAGES if name in installed}
    kept = {n: v for n, v in versions().items() if n in ("python", "qcompile", "torch", "numpy")}
    run = {"command": command, "cpu": cpu(), "images": f"{images:,} in batches of {batch}"}
    return run | {"threads": "1; builds as each tool chooses"} | kept | extra
