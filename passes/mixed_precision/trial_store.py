"""Weights in all of their formats, and what each would cost, in a folder that a killed build leaves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.stages.shelf import NO_SHELF, Shelf
from qcompile.passes.mixed_precision.weight_damage import Trials, Tried, weight_users
from qcompile.passes.quantization.layer import Layer
from qcompile.passes.quantization.store import store_bias

_DAMAGE = "damage"
_WEIGHT, _BIAS = "weight", "bias"


@dataclass(frozen=True)
class TrialStore:
    """A file a weight; each is whole at any moment.

    Args:
        folder: Of the files; its name stands for all that they depend on.
        shelf: Where weights are found that other builds have tried, and are left for others.
    """

    folder: Path
    shelf: Shelf = NO_SHELF

    def put(self, name: str, found: Trials) -> None:
        """Keep the trials of a weight."""
        tensors = {}
        for kind, tried in found.tried.items():
            tensors[f"{kind}.{_WEIGHT}"] = _narrow(tried.weight)
            if tried.bias is not None:
                tensors[f"{kind}.{_BIAS}"] = tried.bias.contiguous().clone()
        self.shelf.put(name, tensors, dict(found.damage))
        self._write(name, tensors, found.damage)

    def _write(self, name: str, tensors: Mapping[str, Tensor], damage: Mapping[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file(name).with_suffix(".part")
        save_file(dict(tensors), part, {_DAMAGE: json.dumps(dict(damage))})
        part.replace(self._file(name))

    def damage(self, name: str, kinds: Iterable[str]) -> Mapping[str, float] | None:
        """Return what is known of a weight; ``None`` unless it is known of all these formats."""
        file = self._file(name)
        if not file.is_file():
            if (shared := self.shelf.get(name)) is None:
                return None
            self._write(name, shared.tensors, shared.facts)
        try:
            with safe_open(file, "pt") as stored:
                found: dict[str, float] = json.loads(stored.metadata()[_DAMAGE])
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            return None
        return found if found.keys() == set(kinds) else None

    def tried(self, name: str, kind: str) -> Tried:
        """Return a weight in one format."""
        with safe_open(self._file(name), "pt") as stored:
            bias = f"{kind}.{_BIAS}"
            has_bias = bias in stored.keys()  # noqa: SIM118  (it is no mapping)
            return Tried(
                stored.get_tensor(f"{kind}.{_WEIGHT}").float(),
                stored.get_tensor(bias) if has_bias else None,
            )

    def graph(self, graph: Graph, kinds: Mapping[str, str]) -> Graph:
        """Return a float graph whose weights have the values of a plan's formats.

        Args:
            graph: It is left as it is.
            kinds: Format by the weight's name; what was not tried, for it has one format, stays float.
        """
        new = graph.copy()
        for name, kind in kinds.items():
            if not self._file(name).is_file():
                continue
            tried = self.tried(name, kind)
            new.weights[name] = tried.weight
            if tried.bias is not None:
                (layer,) = weight_users(new, name)
                store_bias(new, Layer(layer, name, tried.weight, None), tried.bias)
        return new

    def _file(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"


def _narrow(weight: Tensor) -> Tensor:
    """Return a weight's own copy, in float16 where that holds its values."""
    half = weight.half()
    return half if torch.equal(half.float(), weight) else weight.contiguous().clone()
