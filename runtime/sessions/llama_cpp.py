"""llama.cpp on the CPU, through llama-cpp-python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.runtime.errors import BundleError, InputError
from qcompile.runtime.llama.context import BATCH, Context, Logits, Options
from qcompile.runtime.llama.library import PACKAGE
from qcompile.runtime.llama.model import Model
from qcompile.runtime.session import Session


class Engine:
    """A GGUF model, whose input is token ids and whose output is the logits after each of them.

    Args:
        artifact: ``model.gguf``.
        options: Fields of ``Options``.
        threads: Of llama.cpp.
    """

    package = PACKAGE

    def __init__(self, artifact: Path, options: Mapping[str, Any], threads: int) -> None:
        self.options = Options.of(options)
        self.model = Model(artifact, repack=self.options.repack)
        self.version: str = self.model.version
        self.threads = threads
        self._context: Context | None = None

    def run(self, inputs: Sequence[Any]) -> Sequence[Any]:
        """Run on ids ``[n]`` or ``[sequences, n]``; return logits ``[sequences, n, vocabulary]``.

        Raises:
            InputError: The ids do not fit the model.
        """
        if len(inputs) != 1 or inputs[0].ndim not in (1, 2) or not inputs[0].size:
            shapes = ", ".join(str(list(value.shape)) for value in inputs)
            raise InputError(
                f"a language model takes token ids [n] or [sequences, n], not {shapes}"
            )
        return [self.logits(np.atleast_2d(inputs[0]))]

    def logits(self, ids: Any, first: int = 0, *, batch: int = BATCH) -> Logits:
        """Return the logits after some positions, each sequence by itself.

        Args:
            ids: ``[sequences, n]``.
            first: Position of the first token whose logits are wanted.
            batch: Tokens that are computed at once.
        """
        self.model.check(ids)
        context = self._room(len(ids), ids.shape[1], batch)
        context.clear()
        return context.decode(ids, 0, first)

    def _room(self, sequences: int, length: int, batch: int) -> Context:
        """Return a context for so many tokens, the last one if it fits."""
        batch = max(batch, sequences)
        kept = self._context
        if (
            kept is None
            or kept.sequences != sequences
            or kept.length < length
            or kept.batch != batch
        ):
            self._context = None  # before there are two
            self._context = Context(
                self.model, self.options, length,
                sequences=sequences, threads=self.threads, batch=batch,
            )  # fmt: skip
        assert self._context is not None
        return self._context


def open_engine(path: Path, *, threads: int = 1) -> Engine:
    """Open a bundle, or a bare ``.gguf`` file with the options that ``Options`` has by default.

    Raises:
        BundleError: It cannot be read or trusted, or holds no language model.
        MissingPackageError: llama-cpp-python is not installed.
    """
    if path.is_dir():
        session = Session(path, threads=threads)
        if not isinstance(session.engine, Engine):
            raise BundleError(
                f"{path} is for {session.manifest.engine['name']}: it holds no language model in GGUF"
            )
        return session.engine
    if path.suffix != ".gguf" or not path.is_file():
        raise BundleError(f"{path} is no bundle and no .gguf file")
    try:
        return Engine(path, {}, threads)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
