"""``python -m qcompile``."""

from qcompile.compiler.cli import main

main()
