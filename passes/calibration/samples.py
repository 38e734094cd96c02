"""Calibration samples: batches that the graph takes, read when they are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Samples:
    """What calibration runs on.

    Args:
        batches: Inputs by name, each batch as the graph takes it; may read from disk at each look-up.
        count: Samples in all batches.
        source: Where they come from, as the manifest says it: a file's name, ``calibration()``, ``random``.
    """

    batches: Sequence[Batch]
    count: int
    source: str

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def sha256(self) -> str:
        """Return the digest of all values, in order."""
        digest = hashlib.sha256()
        for batch in self:
            for name, tensor in batch.items():
                flat = tensor.contiguous().flatten().view(torch.uint8)
                digest.update(name.encode())
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(flat.numpy().tobytes())
        return digest.hexdigest()
