"""Loads and runs bundles with numpy and an engine; never imports torch."""

from __future__ import annotations

import os

from qcompile.runtime.session import Session, load

__all__ = ["Session", "load"]

# ONNX Runtime 1.29 and later report to Microsoft from when they are imported, unless this says no.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
