"""``qcompile imatrix``: what llama-imatrix writes, from PyTorch's activations."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.driver.language import SEQUENCE, batches
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.driver.write import check_file
from qcompile.compiler.frontend.load import load
from qcompile.compiler.frontend.texts import Texts, read_texts
from qcompile.compiler.frontend.words import read_words
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import ModelError
from qcompile.passes.calibration.input_squares import InputSquares, Squares
from qcompile.passes.calibration.walk import Walk
from qcompile.targets.gguf.imatrix import UNVISITED, Imatrix, write_imatrix
from qcompile.targets.gguf.importance import collected
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.tensors import GgufTensor
from qcompile.targets.options import NO_BLOCK_OPTIONS

_ANY_MIX = "f32"
"""Names of tensors are the same in all."""


@dataclass(frozen=True)
class Written:
    """An imatrix that was written.

    Args:
        file: Where.
        matrices: That it knows.
        texts: What the model read.
    """

    file: Path
    matrices: int
    texts: Texts

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        texts = self.texts
        count, length = texts.ids.shape
        return {
            "imatrix": str(self.file),
            "matrices": self.matrices,
            "dataset": {
                "documents": texts.documents,
                "tokens": texts.tokens,
                "sequences": count,
                "seq_len": length,
                "left_over": texts.left_over,
                "replaced": texts.replaced,
                "sha256": texts.sha256,
            },
        }


def make_imatrix(
    model: str,
    calibrate: Path,
    file: Path,
    *,
    seq_len: int | None = None,
    num_samples: int | None = None,
    max_host_ram: int = 1 << 30,
    force: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Let a language model read a text, and write the mean squares of the inputs of its matrices.

    Args:
        model: A Hugging Face directory.
        calibrate: See ``compiler.frontend.texts``.
        file: To write; it appears at once, whole.
        seq_len: Tokens a sequence; default: 512, or the context.
        num_samples: Use the first sequences only.
        max_host_ram: Bytes of activations in memory; the rest waits on disk.
        force: Replace a file that is there.
        progress: Told what happens.

    Raises:
        QCompileError: The model, the text or the place to write to cannot be used; nothing was written.
    """
    progress = progress or Progress()
    check_file(file, force=force)
    progress.stage("load")
    source = load(model)
    if source.checkpoint is None:
        raise ModelError(f"{model} is no language model: give a Hugging Face directory")
    tensors = collected(Layout.of(source.checkpoint, _ANY_MIX, NO_BLOCK_OPTIONS))
    texts = _texts(source.checkpoint, calibrate, seq_len, num_samples)
    visitor = InputSquares(source.graph, {n for t in tensors.values() for n in t.sources})
    _check_read(visitor, tensors)
    progress.stage("imatrix")
    Walk(source.graph, batches(texts), max_host_ram, progress.share).run(visitor)
    imatrix = _imatrix(tensors, visitor.found, texts)
    part = file.with_name(f".{file.name}.tmp-{os.getpid()}")
    try:
        write_imatrix(part, imatrix)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
    return Written(file, len(tensors), texts)


def _texts(
    checkpoint: Checkpoint, calibrate: Path, seq_len: int | None, num_samples: int | None
) -> Texts:
    length = seq_len or min(SEQUENCE, checkpoint.context)
    return read_texts(calibrate, read_words(checkpoint.path), length, max_sequences=num_samples)


def _check_read(visitor: InputSquares, tensors: Mapping[str, GgufTensor]) -> None:
    """Refuse a model in which matrices are not read by linear layers.

    Raises:
        ModelError: Names them all.
    """
    unread = [n for n, t in tensors.items() if not visitor.watched.issuperset(t.sources)]
    if unread:
        raise ModelError(
            f"the inputs of {', '.join(unread)} cannot be collected: no linear layer reads "
            "them; use llama-imatrix, or build without an imatrix"
        )


def _imatrix(
    tensors: Mapping[str, GgufTensor], found: Mapping[str, Squares], texts: Texts
) -> Imatrix:
    squares = {name: [found[source] for source in t.sources] for name, t in tensors.items()}
    means = {name: np.stack([_means(part) for part in parts]) for name, parts in squares.items()}
    rows = {n: np.array([s.rows for s in p], dtype=np.float32) for n, p in squares.items()}
    count, length = texts.ids.shape
    return Imatrix(means, rows, length, count, (texts.source,))


def _means(squares: Squares) -> NDArray[np.float32]:
    """Return the mean squares; of an expert that no token reached what llama.cpp takes instead."""
    if not squares.rows:
        return np.full(len(squares.sums), UNVISITED, np.float32)
    found: NDArray[np.float32] = (squares.sums / squares.rows).float().numpy()
    return found
