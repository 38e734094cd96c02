"""What whole steps found, on disk: a build that was killed and goes on does not repeat them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FACTS = "facts"


class StepStore:
    """A folder with one file a step, which is there whole or not at all.

    Args:
        folder: Is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, step: str, tensors: Mapping[str, Tensor], facts: Any) -> None:
        """Keep what a step found.

        Args:
            step: Its name.
            tensors: By name; what lies in them is what is given back, bit for bit.
            facts: What JSON holds.
        """
        file = self.folder / f"{step}.safetensors"
        part = file.with_name(f"{file.name}.part")
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, part, {_FACTS: json.dumps(facts)})
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.rename(file)

    def get(self, step: str) -> tuple[dict[str, Tensor], Any] | None:
        """Return the tensors and facts of a step; ``None`` if it is not done."""
        file = self.folder / f"{step}.safetensors"
        if not file.exists():
            return None
        with safe_open(file, framework="pt") as reader:
            tensors = {key: reader.get_tensor(key) for key in reader.keys()}  # noqa: SIM118
            return tensors, json.loads(reader.metadata()[_FACTS])
