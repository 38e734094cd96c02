"""A Hugging Face directory -> ``Source``."""

from __future__ import annotations

from pathlib import Path

import torch

from qcompile.compiler.frontend.huggingface.directory import open_directory
from qcompile.compiler.frontend.huggingface.language_model import INPUT, load_graph
from qcompile.compiler.frontend.huggingface.reference import Reference
from qcompile.compiler.frontend.load import Source
from qcompile.compiler.ir.checkpoint import Checkpoint

TOKENS = 32
"""Of the test vectors."""
_STRIDE = 7919
"""A prime: the ids of the test vectors are spread over the vocabulary."""


def load_directory(path: Path) -> Source:
    """Load the language model of a directory; its weights stay where they are.

    Raises:
        ModelError: Something is missing, damaged, or not what config.json says.
    """
    directory = open_directory(path)
    loaded = load_graph(directory)
    count = min(TOKENS, loaded.context)
    ids = torch.arange(1, count + 1) * _STRIDE % loaded.vocabulary
    loaded.graph.inputs = {INPUT: ids[None]}
    checkpoint = Checkpoint(path, directory.config, loaded.shapes, loaded.context)
    source = Source(directory.name, directory.name, Reference(directory), loaded.graph)
    source.checkpoint = checkpoint
    return source
