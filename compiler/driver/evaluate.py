"""``qcompile evaluate``: an artifact beside its original, on a text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.compiler.driver.language_models import (
    GgufModel,
    LanguageModel,
    Logits,
    open_language_model,
)
from qcompile.compiler.driver.language_quality import LanguageQuality, compare_logits
from qcompile.compiler.driver.progress import Progress
from qcompile.compiler.frontend.texts import Texts, read_texts
from qcompile.compiler.ir.errors import CalibrationError, ModelError

FLOOR_SEQUENCES = 8
"""Sequences on which the original is run a second time."""
_SHORTEST = 3
_SAME_WORDS = 0.01
"""The vocabularies may differ by this share: some formats drop rows of the embedding that no token uses."""


@dataclass(frozen=True)
class Evaluation:
    """An artifact beside its original.

    Args:
        quality: The comparison.
        floor: The original beside itself: what rounding of sums alone does.
        noise: How the original's two runs differ.
        texts: What they read.
        artifact: What was measured.
        original: What it was measured against.
        vocabulary: Tokens whose probabilities were compared, of all that each model knows.
    """

    quality: LanguageQuality
    floor: LanguageQuality
    noise: str
    texts: Texts
    artifact: str
    original: str
    vocabulary: tuple[int, int, int]

    def to_data(self) -> dict[str, Any]:
        """Return it as plain data."""
        own = self.floor.figures
        return {
            **asdict(self.quality.figures),
            "errors": asdict(self.quality.errors),
            "floor": {
                **asdict(own.kl),
                "same_top": own.same_top,
                "tokens": self.floor.tokens,
                "between": self.noise,
            },
            "tokens": self.quality.tokens,
            "sequences": self.quality.sequences,
            "dataset": {
                "tokens": self.texts.tokens,
                "left_over": self.texts.left_over,
                "replaced": self.texts.replaced,
                "sha256": self.texts.sha256,
            },
        }


def evaluate(
    bundle: Path,
    against: Path,
    dataset: Path,
    *,
    seq_len: int,
    max_sequences: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare a language model's artifact with its original.

    Args:
        bundle: A bundle or a ``.gguf`` file.
        against: The original: a Hugging Face directory, or another bundle or ``.gguf`` file.
        dataset: See ``compiler.frontend.texts``; the original's tokenizer reads it.
        seq_len: Tokens a sequence.
        max_sequences: Use the first ones only.
        threads: Of llama.cpp.
        progress: Told what happens.

    Raises:
        CalibrationError: The dataset cannot be used.
        ModelError: The models do not belong together.
        BundleError: The artifact cannot be used.
    """
    progress = progress or Progress()
    progress.stage("load")
    artifact = GgufModel(bundle, threads=threads)
    original = open_language_model(against, threads=threads)
    vocabulary = _vocabulary(artifact, original)
    _check_context(artifact, seq_len)
    texts = read_texts(dataset, original.words, seq_len, max_sequences=max_sequences)
    few = texts.ids[:FLOOR_SEQUENCES]
    progress.stage("original, twice")
    floor = compare_logits(
        _narrow(original.logits(few), vocabulary), _narrow(original.again(few), vocabulary), few
    )
    progress.stage("evaluate")
    quality = compare_logits(
        _narrow(original.logits(texts.ids), vocabulary),
        _told(_narrow(artifact.logits(texts.ids), vocabulary), len(texts.ids), progress),
        texts.ids,
    )
    known = (vocabulary, artifact.vocabulary, original.vocabulary)
    return Evaluation(quality, floor, original.noise, texts, artifact.name, original.name, known)


def _vocabulary(artifact: LanguageModel, original: LanguageModel) -> int:
    """Return how many tokens both know."""
    sizes = artifact.vocabulary, original.vocabulary
    if max(sizes) - min(sizes) > _SAME_WORDS * max(sizes):
        raise ModelError(
            f"the artifact knows {sizes[0]:,} tokens and the original {sizes[1]:,}: they are not the "
            "same model"
        )
    return min(sizes)


def _check_context(artifact: LanguageModel, length: int) -> None:
    limit = artifact.words.context
    if length < _SHORTEST:
        raise CalibrationError(
            f"sequences of {length} tokens: at least {_SHORTEST} are needed for one to be scored"
        )
    if limit is not None and length > limit:
        raise CalibrationError(
            f"sequences of {length} tokens: the artifact's context is {limit}; give --seq-len {limit} "
            "or less"
        )


def _narrow(logits: Iterator[Logits], vocabulary: int) -> Iterator[NDArray[np.float32]]:
    return (found[:, :vocabulary] for found in logits)


def _told(logits: Iterator[Logits], count: int, progress: Progress) -> Iterator[Logits]:
    for index, found in enumerate(logits, 1):
        yield found
        progress.share(index / count)
