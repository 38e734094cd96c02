"""``qcompile report BUNDLE...``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qcompile.compiler.cli.common import print_json, reports_errors

if TYPE_CHECKING:
    from qcompile.compiler.report.reports import Report

_FILE = click.Path(path_type=Path)


@click.command("report")
@click.argument(
    "bundles", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="BUNDLE..."
)
@click.option("-o", "--output", type=_FILE, help="Write one HTML file, which needs no network.")
@click.option("--baseline", metavar="DIR|URL", help="Compare with the bundles in a folder.")
@click.option("--bench", "benches", type=_FILE, multiple=True, metavar="FILE",
              help="A latency: what `qcompile bench BUNDLE --json` printed; repeatable.")  # fmt: skip
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML: a test a gate.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write a summary for a pull request.")
@click.option("--sarif", type=_FILE, metavar="FILE", help="Write findings as SARIF 2.1.0.")
@reports_errors
def command(
    bundles: tuple[Path, ...],
    output: Path | None,
    baseline: str | None,
    benches: tuple[Path, ...],
    junit: Path | None,
    markdown: Path | None,
    sarif: Path | None,
    as_json: bool,
) -> None:
    """Report on bundles, or on all bundles in folders: gates, sizes, layers, errors, changes.

    The exit code is 1 if a gate of a bundle failed; the files are written all the same.
    """  # fmt: skip
    named = {"--output": output, "--junit": junit, "--markdown": markdown, "--sarif": sarif}
    wanted = {option: file for option, file in named.items() if file is not None}
    if not wanted and not as_json:
        raise click.UsageError(
            "nothing to write: give --output, --junit, --markdown, --sarif or --json"
        )
    found = _write(bundles, baseline, benches, wanted)
    if as_json:
        from qcompile.compiler.report.data import report_data

        print_json(report_data(found))
    else:
        click.echo(found.summary)
    sys.exit(0 if found.passed else 1)


def _write(
    bundles: tuple[Path, ...],
    baseline: str | None,
    benches: tuple[Path, ...],
    wanted: dict[str, Path],
) -> Report:
    """Read the bundles and write the files; nothing is written if one of them cannot be."""
    from qcompile.compiler.report import files, junit, markdown, page, sarif
    from qcompile.compiler.report.reports import make_report

    writers = {
        "--output": page.page, "--junit": junit.junit, "--markdown": markdown.markdown,
        "--sarif": sarif.sarif,
    }  # fmt: skip
    found = make_report(bundles, baseline, benches)
    read = [*found.entries, *(change.before for change in found.differences)]
    files.check_files(wanted, [entry.folder for entry in read])
    texts = {file: writers[option](found) for option, file in wanted.items()}
    for file, text in texts.items():
        files.write(file, text)
    return found
