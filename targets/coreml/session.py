"""The reference interpreter as a session's engine, where Core ML itself is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import qcompile
from qcompile.targets.coreml.reference.interpreter import Interpreter
from qcompile.targets.coreml.reference.package import read_package


class ReferenceEngine:
    """Runs the package on disk; see ``qcompile.runtime.session.Engine``."""

    version = qcompile.__version__

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        self._interpreter = Interpreter(read_package(artifact))
        self._options = options
        self._threads = threads

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on inputs in the program's order."""
        given = {
            name: torch.from_numpy(np.ascontiguousarray(value)).to(kind.dtype)
            for (name, kind), value in zip(self._interpreter.inputs, inputs, strict=True)
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            found = self._interpreter.run(given)
        finally:
            torch.set_num_threads(threads)
        return [v.numpy() for v in output_tensors(found, self._options)]


def output_tensors(found: Mapping[str, Any], options: Mapping[str, Any]) -> list[Tensor]:
    """Return a program's outputs as tensors: a classifier's dictionary as ``[1, classes]``."""
    classifier = options.get("classifier")
    if classifier is None:
        return list(found.values())
    by_label = found[classifier["probabilities"]]
    return [torch.tensor([[float(by_label[label]) for label in classifier["labels"]]])]
