"""What every benchmark that writes a page does around its work: options, a folder, the page."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser without options, which prints its description as it is written.

    Args:
        description: The benchmark's docstring.
    """
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=description, formatter_class=form)


def add_working_options(parser: argparse.ArgumentParser) -> None:
    """Add --threads, --keep and --reuse."""
    add = parser.add_argument
    add("--threads", type=int, default=1, help="more wait for each other where others work")
    add("--keep", type=Path, help="leave all files in KEEP/")
    add("--reuse", action="store_true", help="take what an earlier --keep left there")


@contextmanager
def working_folder(keep: Path | None) -> Iterator[Path]:
    """Give the folder that --keep names, else one that is gone afterwards."""
    with tempfile.TemporaryDirectory() as temporary:
        yield keep or Path(temporary)


def command_line(arguments: Sequence[str]) -> str:
    """Return the command that is running, as one would type it in the repository."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return shlex.join(["python", script, *arguments])


def publish(page: str, output: Path | None) -> None:
    """Print a page, and write it if it has a place."""
    print(page)
    if output is not None:
        write(output, page)


def write(output: Path, text: str) -> None:
    """Write a text, its folder first."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text)


def tell(text: str) -> None:
    """Say what is going on."""
    print(text, file=sys.stderr, flush=True)
