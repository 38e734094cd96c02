"""The results of ``tvm_vision.py`` as markdown, with what one must know to repeat them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from measure_tvm import CLOSE, Closeness
from report_int8 import cpu, versions

PACKAGES = ("apache-tvm", "apache-tvm-ffi")
TOOLS = ("g++", "aarch64-linux-gnu-g++", "qemu-aarch64")
COLUMNS = (
    "", "top-1 %", "agreement %", "SQNR dB", "artifact bytes", "deployed bytes", "µs in Python",
    "µs in C++", "load ms", "start-up ms in Python", "start-up ms in C++", "build s",
)  # fmt: skip
NEAR = (
    "artifact", "compared with", "images", "logits that differ", "images equal %", "same class %",
    "largest difference", "SQNR dB",
)  # fmt: skip
OWN_IMAGES = 1_000
"""Test images that TVM's own float libraries are judged on."""
NOTES = f"""\
Agreement and SQNR are with the logits of the float32 model in PyTorch, over 10,000 test images if not
said otherwise. The rows of ONNX Runtime and of TVM are bundles of this project for x86-avx512-vnni.
TVM's own float32 is the same graph without kernels of this project: in TVM's default schedule, and in the
fastest ones of so many trials of `--tune`. Its default is slow, so the first {OWN_IMAGES:,} images must do.

Bytes: the artifact is `model.onnx`, `model.so`, or the file of weights. Deployed is what must be on the
device beside Python and numpy: for ONNX Runtime the model and the installed files of the onnxruntime
package; for TVM `model.so`, the runtime libraries, `run` and the manifest, and no Python is needed.

Latency: batch 1, one thread. In Python all rows alternate in one process, bundles by `Session.run`; in C++
it is what `run --calls N --threads 1` prints, one program after the other, so that its caches stay warm.
The machine had other work: the measurement was repeated, and of each row the best median is shown. Rows of
int8 and int4 weights have float32 activations. TVM's own libraries are no bundles: the engine is called.

Load: `Session(bundle)` with the engine's package imported, digests of all files compared. Start-up: a
fresh process from its start to its end, which loads the bundle and runs one image; the disk's cache is
warm; in Python most of TVM's is `import tvm`, which imports PyTorch where that is installed. A build is one
process from start to end, imports and verification included, TVM's runtime libraries for the device in the
cache; with `--reuse` the time is that of the run that built it.

Equal images are those whose ten logits all are within {CLOSE} of the others. A requantization that
falls on the other side of a tie is one step of that layer's scale, and later layers carry it on; that each
layer is within one step of the graph's, given the same input, is a gate of every build, on 16
calibration images. The Raspberry Pis' bundles run under qemu-user, by the C++ program; their
time there means nothing and is not shown. Their activations are signed, those of x86 are not,
so each is quantized on its own.
"""


@dataclass(frozen=True)
class Costs:
    """Bytes and times of an artifact; ``None`` where there is no such thing.

    Args:
        bytes: Of the artifact.
        deployed_bytes: With what runs it.
        load_ms: In Python.
        python_startup_ms: A process.
        program_startup_ms: A process.
        build_seconds: A process.
    """

    bytes: int
    deployed_bytes: int | None = None
    load_ms: float | None = None
    python_startup_ms: float | None = None
    program_startup_ms: float | None = None
    build_seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        name: Of the engine and the precision.
        top1: Percentage.
        closeness: Agreement and SQNR with the float model.
        python_us: A call.
        program_us: A call in the C++ program.
        costs: Of the artifact.
    """

    name: str
    top1: float
    closeness: tuple[float, float] | None
    python_us: float
    program_us: float | None
    costs: Costs


@dataclass(frozen=True)
class Result:
    """What one model gave.

    Args:
        model: Its name.
        rows: Of the table.
        near: Comparisons of logits.
        sizes: Bytes of the deployed files, by target and path.
    """

    model: str
    rows: Sequence[Row]
    near: Sequence[Closeness]
    sizes: Mapping[str, Mapping[str, int]]


def markdown(results: Sequence[Result], facts: Mapping[str, str]) -> str:
    """Return the whole page."""
    lines = ["# TVM vision models beside ONNX Runtime", "", NOTES]
    for result in results:
        lines += [f"## {result.model}", "", *_table(COLUMNS, 1, map(_cells, result.rows)), ""]
        lines += [_verdict(result.rows), "", _floats(result.rows), ""]
        lines += [*_table(NEAR, 2, map(_near_cells, result.near)), "", *_sizes(result.sizes), ""]
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _table(columns: Sequence[str], texts: int, rows: object) -> list[str]:
    ruler = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return ["| " + " | ".join(line) + " |" for line in (columns, ruler, *rows)]  # type: ignore[misc]


def _cells(row: Row) -> list[str]:
    near = ["", ""] if row.closeness is None else [f"{value:.2f}" for value in row.closeness]
    costs = row.costs
    sizes = [_text(costs.bytes, 0), _text(costs.deployed_bytes, 0)]
    speed = [_text(row.python_us, 0), _text(row.program_us, 0), _text(costs.load_ms, 1)]
    start = [_text(costs.python_startup_ms, 0), _text(costs.program_startup_ms, 0)]
    build = _text(costs.build_seconds, 1)
    return [row.name, f"{row.top1:.2f}", *near, *sizes, *speed, *start, build]


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def _near_cells(near: Closeness) -> list[str]:
    counts = [f"{near.images:,}", f"{near.differing:,} of {near.values:,}"]
    shares = [f"{near.equal:.2f}", f"{near.agreement:.2f}"]
    return [
        near.artifact,
        near.other,
        *counts,
        *shares,
        f"{near.largest:.3g}",
        f"{near.sqnr_db:.2f}",
    ]


def _verdict(rows: Sequence[Row]) -> str:
    """Return how long TVM's int8 takes beside ONNX Runtime's."""
    named = {row.name: row for row in rows}
    ours, theirs = named["TVM int8"], named["ONNX Runtime int8"]
    assert ours.program_us is not None
    python, program = ours.python_us / theirs.python_us, ours.program_us / theirs.python_us
    return (
        f"TVM int8 takes {python:.2f} times as long as ONNX Runtime int8 in Python, "
        f"and {program:.2f} times in C++ beside ONNX Runtime in Python."
    )


def _floats(rows: Sequence[Row]) -> str:
    """Return how long TVM's float32 takes beside ONNX Runtime's, in Python."""
    theirs = next(row for row in rows if row.name == "ONNX Runtime float32").python_us
    ours = [row for row in rows if row.name.startswith("TVM") and "float32" in row.name]
    shares = "; ".join(f"{row.name}: {row.python_us / theirs:.2f}" for row in ours)
    return f"Beside ONNX Runtime float32, in Python: {shares}."


def _sizes(sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    names = list(dict.fromkeys(name for found in sizes.values() for name in found))
    rows = [[f"`{n}`", *(f"{found[n]:,}" for found in sizes.values())] for n in names]
    total = ["together", *(f"{sum(found.values()):,}" for found in sizes.values())]
    return _table(["bytes of TVM int8", *sizes], 1, [*rows, total])


def environment(command: str) -> dict[str, str]:
    """Return what the numbers depend on."""
    installed = {d.name: d.version for d in metadata.distributions()}
    extra = {name: installed[name] for name in PACKAGES if name in installed}
    names = ("python", "qcompile", "onnxruntime", "torch", "numpy")
    kept = {name: version for name, version in versions().items() if name in names}
    run = {"command": command, "cpu": cpu(), "threads": "1; builds as each tool chooses"}
    return run | kept | extra | {tool: _version(tool) for tool in TOOLS}


def _version(tool: str) -> str:
    done = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]
