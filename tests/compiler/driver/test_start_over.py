"""What a killed build left of another model is refused, or removed if a build may start over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompile.compiler.driver.language import work_folder
from qcompile.compiler.driver.options import BuildOptions
from qcompile.compiler.frontend.load import load
from qcompile.compiler.ir.errors import OutputError


def test_start_over(here: Path) -> None:
    source, options = load("tiny.py"), BuildOptions(target="x86-avx512-vnni", resume=True)
    left = here / ".x.qc.work-0123456789abcdef"
    left.mkdir()
    with pytest.raises(OutputError, match="build without --resume"):
        work_folder(source, options.resolve(), options, here / "x.qc")
    own = work_folder(source, options.resolve(), replace(options, start_over=True), here / "x.qc")
    assert not left.exists()
    own.mkdir()
    (own / "done").touch()
    again = work_folder(source, options.resolve(), replace(options, start_over=True), here / "x.qc")
    assert again == own
    assert (own / "done").exists()
