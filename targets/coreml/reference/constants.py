"""The constants of a program: read when they are used, widened and decompressed ones kept for a while."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qcompile.targets.coreml.reference.errors import ExecutionError
from qcompile.targets.coreml.reference.package import Package
from qcompile.targets.coreml.reference.program import Block, Stored


@dataclass
class Constants:
    """Constants by name.

    Args:
        package: Where stored ones are read from.
        cache_bytes: Of what is kept: weights as float32, decompressed weights.
    """

    package: Package
    cache_bytes: int
    _known: dict[str, Any] = field(default_factory=dict)
    _cache: dict[str, Tensor] = field(default_factory=dict)
    _dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _cached_bytes: int = 0

    def add(self, block: Block) -> None:
        """Take over the ``const`` ops of a block."""
        for operation in block.operations:
            if operation.type == "const":
                self._known[operation.outputs[0][0]] = operation.inputs["val"]

    def holds(self, name: str) -> bool:
        """Return whether a decompressed weight is kept."""
        return name in self._cache and name not in self._known

    def get(self, name: str) -> Any:
        """Return a constant.

        Raises:
            ExecutionError: There is none: an op reads what was never computed.
        """
        if name in self._cache:
            return self._cache[name].to(self._dtypes[name])
        if name not in self._known:
            raise ExecutionError(f"it reads {name!r}, which nothing before it computes")
        value = self._known[name]
        return self.package.load(value) if isinstance(value, Stored) else value

    def argument(self, name: str, *, wide: bool) -> Any:
        """Return a constant, float16 as float32 if ``wide``."""
        if wide and name in self._cache:
            return self._cache[name]
        value = self.get(name)
        if not wide or not isinstance(value, Tensor) or value.dtype != torch.float16:
            return value
        self.keep(name, value)
        return value.float()

    def keep(self, name: str, value: Tensor) -> None:
        """Keep a weight, float16 as float32, if there is room; one that is kept stays as it is."""
        if name in self._cache:
            return
        widened = value.float() if value.dtype == torch.float16 else value
        if self._cached_bytes + widened.nbytes <= self.cache_bytes:
            self._cached_bytes += widened.nbytes
            self._cache[name], self._dtypes[name] = widened, value.dtype
