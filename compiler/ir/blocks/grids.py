"""Reads ``grids.toml``: the vectors that codes of lattice formats name."""

from __future__ import annotations

import functools
import tomllib
from importlib.resources import files

import torch
from torch import Tensor


@functools.cache
def grid(name: str) -> Tensor:
    """Return the vectors of a format, all positive: float32 ``[vectors, elements]``; do not change it."""
    text = (files("qcompile.compiler.ir.blocks") / "grids.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)[name]
    values = torch.tensor(table["values"], dtype=torch.float32)
    digits = torch.frombuffer(bytearray(table["digits"], "ascii"), dtype=torch.uint8) - ord("0")
    return values[digits.int()].reshape(-1, table["vector"])
