"""Language models as sources of logits: a Hugging Face directory in PyTorch, or GGUF in llama.cpp."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from qcompile.compiler.driver.language_quality import scored
from qcompile.compiler.frontend.words import Words, read_words
from qcompile.compiler.ir.errors import MissingPackageError, ModelError
from qcompile.runtime.generation import chat_template
from qcompile.runtime.llama.context import BATCH
from qcompile.runtime.sessions.llama_cpp import Engine, open_engine

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
_SMALL = 64
_PAIR = 2


class LanguageModel(Protocol):
    """What can be compared.

    Args:
        name: For people.
        words: How it reads text.
        vocabulary: Width of its logits.
        noise: How ``again`` differs from ``logits``.
    """

    name: str
    words: Words
    vocabulary: int
    noise: str

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """Give the logits of each sequence's scored positions."""

    def again(self, ids: Ids) -> Iterator[Logits]:
        """Give the same, summed in another order."""


class TorchModel:
    """A Hugging Face directory, in PyTorch and float32.

    Args:
        folder: With ``config.json`` and weights; no code of its own is run.

    Raises:
        MissingPackageError: transformers is not installed.
        ModelError: It cannot be loaded.
    """

    noise = f"PyTorch, plain attention and {_PAIR} sequences at a time instead of its fused kernel and one"

    def __init__(self, folder: Path) -> None:
        try:
            import transformers
        except ImportError as error:
            raise MissingPackageError("transformers", "gguf") from error
        self.words = read_words(folder)
        self.name = f"{folder} in PyTorch, float32"
        try:
            with _quiet(transformers.utils.logging):
                self._module = transformers.AutoModelForCausalLM.from_pretrained(
                    folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
                ).eval()
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"{folder} cannot be loaded by transformers: {reason}") from error
        self.vocabulary = int(self._module.config.get_text_config().vocab_size)
        self._keeps = "logits_to_keep" in inspect.signature(self._module.forward).parameters

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """Give them, one sequence at a time."""
        return self._batches(ids, 1)

    def again(self, ids: Ids) -> Iterator[Logits]:
        """Give them, more at a time, with attention that is written out in PyTorch's ops."""
        own = self._module.config._attn_implementation
        self._module.set_attn_implementation("eager")
        try:
            yield from self._batches(ids, _PAIR)
        finally:
            self._module.set_attn_implementation(own)

    def _batches(self, ids: Ids, size: int) -> Iterator[Logits]:
        first, end = scored(ids.shape[1])
        keep = {"logits_to_keep": ids.shape[1] - first} if self._keeps else {}
        for at in range(0, len(ids), size):
            with torch.no_grad():
                given = torch.from_numpy(ids[at : at + size])
                found = self._module(given, use_cache=False, **keep).logits
            wanted = found[:, first - end - 1 : -1].float().numpy()
            yield from wanted


class GgufModel:
    """A bundle's GGUF model, or a ``.gguf`` file, in llama.cpp.

    Args:
        path: Of it.
        threads: Of llama.cpp.

    Raises:
        BundleError: It cannot be read, or is no language model.
    """

    noise = f"llama.cpp, {_SMALL} tokens at a time instead of {BATCH}"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._engine: Engine = open_engine(path, threads=threads)
        model = self._engine.model
        self.name = f"{path} in llama.cpp {self._engine.version}"
        self.vocabulary = model.vocabulary
        self.words = Words(
            encode=lambda text: model.tokenize(text, special=True, begin=False),
            vocabulary=model.vocabulary,
            beginning=model.beginning,
            ending=model.ending,
            template=chat_template(model),
            context=model.context,
        )

    def logits(self, ids: Ids) -> Iterator[Logits]:
        """Give them, a sequence at a time."""
        return self._batches(ids, BATCH)

    def again(self, ids: Ids) -> Iterator[Logits]:
        """Give them, computing fewer tokens at once."""
        return self._batches(ids, _SMALL)

    def _batches(self, ids: Ids, batch: int) -> Iterator[Logits]:
        first, end = scored(ids.shape[1])
        for row in ids:
            yield self._engine.logits(row[None], first, batch=batch)[0, : end - first]


def open_language_model(path: Path, *, threads: int = 1) -> LanguageModel:
    """Open what a path names: a Hugging Face directory, a bundle, or a ``.gguf`` file.

    Raises:
        ModelError: It is none of these.
        BundleError: It is a bundle or a file that cannot be used.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return TorchModel(path)
    if path.suffix == ".gguf" or (path / "manifest.json").is_file():
        return GgufModel(path, threads=threads)
    raise ModelError(
        f"{path} is no language model: give a Hugging Face directory (with config.json), a bundle, or "
        "a .gguf file"
    )


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Keep transformers from drawing and warning while it loads."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
