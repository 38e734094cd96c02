"""The table at the end of `make demo`: an INT8 bundle beside the float32 one of the same model.

Run: python examples/demo.py MODEL BUNDLE
"""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qcompile.compiler.driver import BuildOptions, Bundle, build
from qcompile.compiler.driver.bench import BenchResult, bench
from qcompile.compiler.frontend.load import load


def float_bundle(model: str, beside: Path) -> Bundle:
    """The same model in float32, for the same engine."""
    folder = beside.with_name(f"{beside.stem}-fp32.qc")
    return build(load(model), folder, BuildOptions(target="host", precision="fp32"), force=True)


def table(before: Bundle, after: Bundle, slow: BenchResult, fast: BenchResult) -> Table:
    """Size, latency and the first metric of `evaluate`, float32 and INT8."""
    rows = Table("", "float32", after.manifest.precision, "", title=after.manifest.name)
    for column in rows.columns[1:]:
        column.justify = "right"
    size, small = (b.manifest.sizes["artifact_bytes"] for b in (before, after))
    rows.add_row("artifact", f"{size:,} B", f"{small:,} B", f"{size / small:.2f} x smaller")
    times = f"{slow.p50:.0f} µs", f"{fast.p50:.0f} µs", f"{slow.p50 / fast.p50:.2f} x faster"
    rows.add_row("latency, median", *times)
    for name, values in after.manifest.quality.items():
        reference, measured = before.manifest.quality[name]["after"], values["after"]
        change = f"{measured - reference:+.2f}"
        rows.add_row(name, f"{reference:.2f} %", f"{measured:.2f} %", f"{change} points")
    return rows


def main(model: str, bundle: str) -> None:
    """Build the float32 bundle, measure both in turn, print."""
    after = Bundle.open(bundle)
    before = float_bundle(model, after.path)
    slow, fast = bench(before.path), bench(after.path)
    console = Console(highlight=False)
    console.print(table(before, after, slow, fast))
    console.print(f"{fast.engine} on {fast.cpu}, one thread, batch size 1, {fast.runs} calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
