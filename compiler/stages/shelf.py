"""``Shelf``: entries of one stage whose keys differ in a name alone, one for each weight for example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qcompile.compiler.stages.cache import NO_CACHE, StageCache
from qcompile.compiler.stages.entry import Entry
from qcompile.compiler.stages.keys import stage_key


@dataclass(frozen=True)
class Shelf:
    """Entries by name.

    Args:
        cache: Where they are.
        stage: That makes them.
        parts: What all of them were made from, as JSON holds it.
    """

    cache: StageCache = NO_CACHE
    stage: str = ""
    parts: tuple[Any, ...] = ()

    def get(self, name: str) -> Entry | None:
        """Return an entry; ``None`` if it is to be made."""
        return self.cache.get(self.stage, self._key(name)) if self.cache else None

    def put(self, name: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep an entry."""
        if self.cache:
            self.cache.put(self.stage, self._key(name), Entry(tensors, facts))

    def _key(self, name: str) -> str:
        return stage_key(self.stage, *self.parts, name)


NO_SHELF = Shelf()
