"""What is measured of a GGUF file: how far its predictions are from PyTorch's on a text.

The figures are those of ``qcompile evaluate``, by its own functions; the original's logits are computed
once a text here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.compiler.driver.evaluate import FLOOR_SEQUENCES
from qcompile.compiler.driver.language_models import GgufModel, TorchModel
from qcompile.compiler.driver.language_quality import LanguageQuality, compare_logits
from qcompile.compiler.frontend.texts import Texts, read_texts

Figures = dict[str, Any]


class Judge:
    """The original on one text.

    Args:
        original: A Hugging Face directory.
        text: A file.
        seq_len: Tokens a sequence.
        folder: For its logits and for figures.
        reuse: Take the figures of an earlier run, if file and text are the same.
        samples: Sequences; all by default.
    """

    def __init__(
        self,
        original: Path,
        text: Path,
        seq_len: int,
        folder: Path,
        *,
        reuse: bool,
        samples: int | None = None,
    ) -> None:
        self.folder, self.reuse, self.name = folder, reuse, text.stem
        self.original = TorchModel(original)
        self.texts: Texts = read_texts(text, self.original.words, seq_len, max_sequences=samples)
        self._logits: np.ndarray | None = None

    def floor(self) -> Figures:
        """Return the original beside itself, summed in another order."""
        few = self.texts.ids[:FLOOR_SEQUENCES]
        own, again = self.original.logits(few), self.original.again(few)
        return plain(compare_logits(own, again, few))

    def figures(self, file: Path, threads: int) -> Figures:
        """Compare a GGUF file with the original."""
        key = f"{digest(file)} {self.texts.sha256}"
        record = self.folder / f"{file.parent.name}-{file.stem}.{self.name}.figures.json"
        if self.reuse and record.exists():
            known: Figures = json.loads(record.read_text())
            if known.pop("of") == key:
                return known
        print(f"{self.name}: {file}", file=sys.stderr, flush=True)
        candidate = GgufModel(file, threads=threads).logits(self.texts.ids)
        found = plain(compare_logits(self._reference(), candidate, self.texts.ids))
        record.write_text(json.dumps({"of": key, **found}))
        return found

    def distance(self, other: Judge) -> float:
        """Return the largest difference of logits to those of another original on the same text."""
        pairs = zip(self._reference(), other._reference(), strict=True)
        return max(float(np.abs(own - its).max()) for own, its in pairs)

    def _reference(self) -> Iterator[np.ndarray]:
        """Give the original's logits; they are computed once."""
        if self._logits is None:
            print(f"{self.name}: logits of the original", file=sys.stderr, flush=True)
            self._logits = np.stack(list(self.original.logits(self.texts.ids)))
        return iter(self._logits)


def plain(quality: LanguageQuality) -> Figures:
    """Return a comparison as data."""
    return {
        **asdict(quality.figures),
        "errors": asdict(quality.errors),
        "tokens": quality.tokens,
        "sequences": quality.sequences,
    }


def digest(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
