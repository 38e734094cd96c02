"""Loads and runs bundles with numpy and an engine; never imports torch."""

from __future__ import annotations

from qcompile.runtime.session import Session, load

__all__ = ["Session", "load"]
