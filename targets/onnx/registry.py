"""What ``torch.onnx`` translates: a table, made once a process for the check before any work and each export.

Making it takes a third of the export of a small network, for it parses the source of each translation.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from qcompile.targets.onnx import blocks

OPSET = 21
"""The first with INT4 and blocked DequantizeLinear, and what ONNX Runtime 1.20 and later read."""


@cache
def registry(opset: int = OPSET) -> Any:
    """Return the translations of an opset, with that of our own op; nobody changes them."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    with quiet():
        found = ONNXRegistry.from_torchlib(opset)
    for op, translation in blocks.translations().items():
        found.register_op(op, translation)
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the exporter logs and warns about itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
