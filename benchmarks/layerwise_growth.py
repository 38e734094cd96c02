"""Layer-wise GPTQ of a 1-billion-parameter shape: how time and memory grow with the number of layers.

    python benchmarks/layerwise_growth.py --work FOLDER --data shared --output FILE.md

Random bfloat16 checkpoints of Llama-3.2-1B's shape with 2, 4, 8 and 16 layers; DATA holds models/lm (its
tokenizer; the vocabulary is made 32,000) and text/calibration.txt. Each build is a process of its own.
FILE.json and two plots, FILE-seconds.svg and FILE-memory.svg, appear beside FILE.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from limited import Cost, run_limited
from pages import command_line, command_parser, publish, tell
from random_checkpoint import Shape, write_checkpoint
from report_language import environment, table

from qcompile.compiler.driver.plot import Axis, Series, svg

TARGET, PRECISION = "apple-m2", "q4_k_m"
LAYERS = (2, 4, 8, 16)
SEQ_LEN, SEQUENCES = 512, 8
COLUMNS = (
    "layers",
    "parameters",
    "s",
    "CPU s",
    "passes s",
    "emit s",
    "verify s",
    "own MiB",
    "peak RSS MiB",
)
PLOTS = {"seconds": ("CPU seconds", "cpu_seconds"), "memory": ("own memory, MiB", "own_mib")}
"""What each plot shows, and its key in a row."""
NOTES = """\
Random weights in Llama-3.2-1B's shape: hidden 2048, ffn 8192, 32 heads, 8 of keys and values, tied
embeddings, but a vocabulary of 32,000 in place of 128,256. `-p q4_k_m --rounding gptq` on {tokens:,}
tokens in sequences of {length}: foldings, error feedback into the K-quants, verification. Own memory is
what is no page cache; the peak RSS counts mapped files too. Seconds depend on what else the machine does:
CPU seconds say what a layer takes.
"""
Row = dict[str, Any]


def shape_of(layers: int) -> Shape:
    """Return Llama-3.2-1B's shape with so many layers."""
    return Shape(2048, 8192, 32, 8, layers, tied=True)


def measure(options: argparse.Namespace, layers: int) -> Row:
    """Build one checkpoint and measure it; its files are removed."""
    tell(f"{layers} layers")
    model, bundle = options.work / f"layers-{layers}", options.work / f"layers-{layers}.qc"
    shape = shape_of(layers)
    write_checkpoint(model, shape, options.data / "models" / "lm")
    text = options.data / "text" / "calibration.txt"
    given = ["--calibrate", str(text), "--seq-len", str(SEQ_LEN), "--num-samples", str(SEQUENCES)]
    command = [sys.executable, "-m", "qcompile", "build", str(model), "--target", TARGET]
    command += [
        "-p",
        PRECISION,
        "--rounding",
        "gptq",
        *given,
        "-o",
        str(bundle),
        "--force",
        "--json",
    ]
    try:
        cost = run_limited(command)
    finally:
        shutil.rmtree(model)
        shutil.rmtree(bundle, ignore_errors=True)
    return _row(layers, shape, cost)


def _row(layers: int, shape: Shape, cost: Cost) -> Row:
    figures = asdict(cost)
    stages = json.loads(figures.pop("output"))["seconds"]
    return {"layers": layers, "parameters": shape.parameters, "stages": stages, **figures}


def measured(options: argparse.Namespace) -> list[Row]:
    """Return all rows, those of an earlier run among them, by their number of layers."""
    rows: dict[int, Row] = {}
    file: Path = options.output.with_suffix(".json")
    if options.reuse and file.exists():
        known = json.loads(file.read_text())
        if known["tokens"] == SEQ_LEN * SEQUENCES:
            rows = {row["layers"]: row for row in known["rows"]}
    for layers in options.layers:
        if layers not in rows:
            rows[layers] = measure(options, layers)
            save(file, [rows[n] for n in sorted(rows)])
    return [rows[layers] for layers in sorted(rows)]


def save(file: Path, rows: list[Row]) -> None:
    """Keep what is measured: ``--reuse`` goes on from there."""
    data = {"tokens": SEQ_LEN * SEQUENCES, "rows": rows}
    file.write_text(json.dumps(data, indent=1) + "\n")


def plots(rows: list[Row], output: Path) -> list[Path]:
    """Draw what grows with the layers; return the files."""
    files = []
    for name, (label, key) in PLOTS.items():
        points = [(row["layers"], row[key]) for row in rows]
        x = Axis("layers", [layers for layers, _ in points])
        y = Axis(label, [0, *(value for _, value in points)])
        file = output.with_name(f"{output.stem}-{name}.svg")
        file.write_text(svg(label, x, y, [Series("", points, joined=True)]))
        files.append(file)
    return files


def markdown(rows: list[Row], facts: dict[str, str], pictures: list[Path]) -> str:
    """Return the page."""
    notes = NOTES.format(tokens=SEQ_LEN * SEQUENCES, length=SEQ_LEN)
    cells = [_cells(row) for row in rows]
    lines = ["# Layer-wise GPTQ from 2 to 16 layers", "", notes, *table(COLUMNS, cells), ""]
    lines += [_growth(rows), "", *(f"![{p.stem} by layers]({p.name})" for p in pictures), ""]
    lines += ["## Environment", "", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    stages = [f"{row['stages'][name]:.0f}" for name in ("passes", "emit", "verify")]
    return [
        str(row["layers"]), f"{row['parameters']:,}", f"{row['seconds']:.0f}",
        f"{row['cpu_seconds']:.0f}", *stages, f"{row['own_mib']:.0f}", f"{row['peak_mib']:.0f}",
    ]  # fmt: skip


def _growth(rows: list[Row]) -> str:
    first, last = rows[0], rows[-1]
    more = last["layers"] - first["layers"]
    if not more:
        return ""
    seconds = (last["cpu_seconds"] - first["cpu_seconds"]) / more
    memory = (last["own_mib"] - first["own_mib"]) / more
    return (
        f"From {first['layers']} to {last['layers']} layers, a layer adds {seconds:.1f} s of CPU and "
        f"{memory:.1f} MiB of its own memory."
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder for all files")
    add("--data", type=Path, required=True, help="folder with models/ and text/")
    add("--layers", type=int, nargs="+", default=LAYERS)
    add("--reuse", action="store_true", help="keep the rows that are in FILE.json")
    add("--output", type=Path, required=True, help="FILE.md; others beside it")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run the benchmark."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    rows = measured(options)
    facts = environment(command_line(arguments))
    publish(markdown(rows, facts, plots(rows, options.output)), options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
