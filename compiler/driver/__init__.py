"""The build: ``build.py`` is the recipe, the other files are its steps."""

from __future__ import annotations

from qcompile.compiler.driver.api import compile
from qcompile.compiler.driver.build import Build, build
from qcompile.compiler.driver.bundle import Bundle
from qcompile.compiler.driver.dry_run import DryRun, dry_run
from qcompile.compiler.driver.options import BuildOptions

__all__ = ["Build", "BuildOptions", "Bundle", "DryRun", "build", "compile", "dry_run"]
