"""``qcompile bench BUNDLE``."""

from __future__ import annotations

from pathlib import Path

import click

from qcompile.compiler.cli.common import console, print_json, reports_errors


@click.command("bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the engine."
)
@click.option(
    "--runs", type=click.IntRange(10), default=500, show_default=True, help="Timed calls."
)
@reports_errors
def command(bundle: Path, threads: int, runs: int, as_json: bool) -> None:
    """Measure latency percentiles, load time and peak memory, in a process of their own."""
    from qcompile.compiler.driver.bench import bench
    from qcompile.runtime.manifest import FILE, file_sha256

    found = bench(bundle, threads=threads, runs=runs)
    if as_json:
        of = {"manifest": file_sha256(bundle / FILE), "threads": threads}
        print_json({**vars(found), **of})
        return
    out = console()
    out.print(f"latency  p50 {found.p50:.0f} us, p90 {found.p90:.0f} us, p99 {found.p99:.0f} us "
              f"({found.runs} calls, batch size 1, {threads} thread(s))")  # fmt: skip
    out.print(f"load     {1000 * found.load_seconds:.0f} ms")
    out.print(f"memory   {found.peak_rss_mib:.0f} MiB peak, with Python, numpy and the engine "
              f"({found.base_rss_mib:.0f} MiB before loading)")  # fmt: skip
    out.print(f"engine   {found.engine}, {found.cpu}")
