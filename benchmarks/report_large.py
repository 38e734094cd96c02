"""The results of ``large_checkpoint.py`` as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limited import Cost
from report_language import table

COLUMNS = (
    "", "bytes", "s", "ratio", "CPU s", "ratio", "s without verify", "ratio", "own MiB", "peak RSS MiB",
)  # fmt: skip
LIMIT_RATIO = 1.5
NOTES = """\
Each row is one process from start to end, imports included, on all cores, with nothing of its input in
the page cache when it starts, and with the same memory limit. The ratio is to llama-quantize, whose
function of that name is called through llama-cpp-python with its defaults and the same imatrix; it reads
a bfloat16 GGUF file of the same weights, which is written before. qcompile's time includes reading the
checkpoint, digests of all weights and files, and verification: PyTorch, the float graph and the
quantized graph run on 32 tokens, llama.cpp loads the file twice and runs it, every byte of the file is
compared with the graph, and both tokenizers are compared. Own memory is what is no page cache; the peak
RSS counts mapped files too, which the kernel takes back when the limit is reached. The goal is a ratio
of at most 1.5 within 3 GiB.
"""


@dataclass(frozen=True)
class Build:
    """A file that was made.

    Args:
        name: By whom.
        bytes: Of it.
        cost: Of the process.
        stages: Seconds of each.
    """

    name: str
    bytes: int
    cost: Cost
    stages: Mapping[str, float]


@dataclass(frozen=True)
class Large:
    """All that was measured.

    Args:
        bytes: Of the checkpoint.
        limit_gib: Of memory.
        imatrix: What the imatrix took.
        ours: Builds.
        theirs: llama-quantize's.
    """

    bytes: int
    limit_gib: float
    imatrix: Cost
    ours: Sequence[Build]
    theirs: Build


def markdown(found: Large, environment: Mapping[str, str]) -> str:
    """Return the page."""
    limited = found.theirs.cost.limited_by
    about = (
        f"A random bfloat16 checkpoint of {found.bytes:,} bytes of Llama-2-7B's shape to q4_k_m, within "
        f"{found.limit_gib:g} GiB (enforced by {limited})."
    )
    rows = [_cells(build, found.theirs) for build in (*found.ours, found.theirs)]
    lines = ["# A checkpoint larger than memory", "", about, "", NOTES, *table(COLUMNS, rows), ""]
    lines += ["## Stages of qcompile, in seconds", "", *_stages(found.ours), ""]
    lines += [
        _imatrix(found.imatrix),
        "",
        "## Environment",
        "",
        *(f"- {name}: {value}" for name, value in environment.items()),
    ]
    return "\n".join(lines) + "\n"


def _imatrix(cost: Cost) -> str:
    return (
        f"The imatrix, of 512 tokens, took {cost.seconds:.0f} s ({cost.cpu_seconds:.0f} s of CPU) and "
        f"{cost.own_mib:.0f} MiB of its own, once for all rows, and is in none of them."
    )


def _cells(build: Build, peer: Build) -> list[str]:
    cost, theirs = build.cost, peer.cost
    bare = cost.seconds - build.stages.get("verify", 0.0)

    def ratio(value: float, other: float) -> str:
        return "" if build is peer else f"{value / other:.2f}"

    missed = "" if cost.seconds <= LIMIT_RATIO * theirs.seconds or build is peer else " missed"
    return [
        build.name, f"{build.bytes:,}",
        f"{cost.seconds:.0f}", ratio(cost.seconds, theirs.seconds) + missed,
        f"{cost.cpu_seconds:.0f}", ratio(cost.cpu_seconds, theirs.cpu_seconds),
        f"{bare:.0f}", ratio(bare, theirs.seconds),
        f"{cost.own_mib:.0f}", f"{cost.peak_mib:.0f}",
    ]  # fmt: skip


def _stages(builds: Sequence[Build]) -> list[str]:
    names = list(dict.fromkeys(name for build in builds for name in build.stages))
    rows = []
    for build in builds:
        rest = build.cost.seconds - sum(build.stages.values())
        shown = [f"{build.stages.get(name, 0.0):.1f}" for name in names]
        rows.append([build.name, *shown, f"{rest:.1f}"])
    return table(["", *names, "start, export, end"], rows)
