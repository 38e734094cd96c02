"""How far one language model's predictions are from another's: perplexity, KL divergence, same top.

The definitions are those of llama.cpp's ``llama-perplexity --kl-divergence`` (tools/perplexity), but for
two things: it stores the reference's logarithms in 16 bits and leaves out tokens whose probability is
below exp(-16); here they are float32 logits, and every token counts. All sums are in float64.

Of a sequence of n tokens the positions n//2 to n-2 are scored, each on the token after it, so that every
prediction has half a sequence before it. Their number in all is N below.

Errors are standard errors:

* a mean m of values v: the larger of ``sqrt((mean(v^2) - m^2) / (N - 1))``, llama.cpp's, which takes tokens
  as independent, and ``sqrt(var(m_s) / (S - 1))`` of the means m_s of the S sequences, which does not;
  on running text the second is 1.1 to 1.4 times the first;
* perplexity ``exp(m)``, m the mean of -log p: ``exp(m)`` times the error of m;
* a share: as a mean of zeros and ones;
* a quantile q: half the distance between the values at the ranks ``N q - d`` and ``N q + d``, where
  ``d = sqrt(N q (1 - q))`` is the standard deviation of how many values lie below it;
* the maximum: by the jackknife, ``(N - 1) / N`` times its distance from the second largest value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qcompile.compiler.ir.errors import ModelError

Array = NDArray[Any]
_BLOCK = 1 << 22
"""Numbers that are held in float64 at once, a few times over."""


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence of the candidate from the reference, in nats, over all tokens.

    Args:
        mean: Its mean.
        median: Its median.
        p99: Its 99th percentile, interpolated.
        max: Its maximum.
    """

    mean: float
    median: float
    p99: float
    max: float


@dataclass(frozen=True)
class Figures:
    """What was measured, or the standard errors of it.

    Args:
        perplexity: Of the candidate.
        perplexity_reference: Of the reference.
        kl: KL(reference || candidate) of the predictions.
        same_top: Share of positions where both find the same token likeliest.
    """

    perplexity: float
    perplexity_reference: float
    kl: Divergence
    same_top: float


@dataclass(frozen=True)
class LanguageQuality:
    """A comparison.

    Args:
        figures: What was measured.
        errors: The standard error of each.
        tokens: Predictions that were scored.
        sequences: That they are from.
    """

    figures: Figures
    errors: Figures
    tokens: int
    sequences: int


def scored(length: int) -> tuple[int, int]:
    """Return the first position of a sequence whose prediction is scored, and the end of them."""
    return length // 2, length - 1


def compare_logits(
    reference: Iterable[Array], candidate: Iterable[Array], tokens: Array
) -> LanguageQuality:
    """Compare two models' logits; one sequence of each is held at a time.

    Args:
        reference: For each sequence the logits ``[scored positions, vocabulary]`` of the original.
        candidate: The same of what is measured.
        tokens: ``[sequences, n]``, with ``scored(n)`` as the positions.

    Raises:
        ModelError: The logits do not belong together, or are not finite.
    """
    count, length = tokens.shape
    first, end = scored(length)
    rows: list[Array] = []
    for index, pair in enumerate(zip_longest(reference, candidate)):
        if index >= count or any(p is None or p.shape != pair[0].shape for p in pair):
            raise ModelError(_mismatch(index, count, pair))
        if len(pair[0]) != end - first:
            raise ModelError(_mismatch(index, count, pair))
        rows.extend(_rows(*pair, tokens[index, first + 1 : end + 1]))
    if len(rows) == 0 or sum(r.shape[1] for r in rows) != count * (end - first):
        raise ModelError(f"logits of {count} sequences were expected; some are missing")
    values = np.concatenate(rows, axis=1)
    if wrong := _not_finite(values):
        raise ModelError(f"the logits are not finite numbers: {wrong}")
    figures, errors = _summary(*(v.reshape(count, -1) for v in values))
    return LanguageQuality(figures, errors, values.shape[1], count)


def _rows(reference: Array, candidate: Array, targets: Array) -> Iterator[Array]:
    """Give -log p of the candidate, of the reference, KL and same top, ``[4, positions]`` a block."""
    step = max(1, _BLOCK // reference.shape[1])
    for at in range(0, len(targets), step):
        part = slice(at, at + step)
        wanted = torch.from_numpy(targets[part].astype(np.int64))[:, None]
        log_p, log_q = (
            torch.from_numpy(np.ascontiguousarray(x[part])).double().log_softmax(1)
            for x in (reference, candidate)
        )
        p = log_p.exp()
        kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(1)
        top = reference[part].argmax(1) == candidate[part].argmax(1)
        losses = [-x.gather(1, wanted)[:, 0].numpy() for x in (log_q, log_p)]
        yield np.stack([*losses, kl.numpy(), top.astype(np.float64)])


def _summary(loss: Array, loss_reference: Array, kl: Array, top: Array) -> tuple[Figures, Figures]:
    """Summarize values ``[sequences, positions]``."""
    count = kl.size
    ordered = np.sort(kl, axis=None)
    perplexity, perplexity_error = _perplexity(loss)
    reference, reference_error = _perplexity(loss_reference)
    median, p99 = (float(v) for v in np.quantile(ordered, (0.5, 0.99)))
    found = Divergence(float(kl.mean()), median, p99, float(ordered[-1]))
    largest = float(ordered[-1] - ordered[-2]) * (count - 1) / count if count > 1 else 0.0
    errors = Divergence(
        _mean_error(kl), _quantile_error(ordered, 0.5), _quantile_error(ordered, 0.99), largest
    )
    return (
        Figures(perplexity, reference, found, float(top.mean())),
        Figures(perplexity_error, reference_error, errors, _mean_error(top)),
    )


def _perplexity(losses: Array) -> tuple[float, float]:
    value = float(np.exp(losses.mean()))
    return value, value * _mean_error(losses)


def _mean_error(values: Array) -> float:
    """Return the standard error of the mean of values ``[sequences, positions]``."""
    kinds = (values.ravel(), values.mean(1))
    return max(float(np.sqrt(v.var() / (len(v) - 1))) if len(v) > 1 else 0.0 for v in kinds)


def _quantile_error(ordered: Array, q: float) -> float:
    count = len(ordered)
    half = np.sqrt(count * q * (1 - q))
    low, high = (int(np.clip(round(count * q + s * half), 0, count - 1)) for s in (-1, 1))
    return float(ordered[high] - ordered[low]) / 2


def _not_finite(values: Array) -> str:
    names = ("the candidate's", "the original's", "their divergence")
    bad = [(name, int((~np.isfinite(v)).sum())) for name, v in zip(names, values, strict=False)]
    return ", ".join(f"{name} at {n:,} of {values.shape[1]:,} positions" for name, n in bad if n)


def _mismatch(index: int, count: int, pair: Iterable[Any]) -> str:
    sizes = " and ".join("none" if p is None else f"{list(p.shape)}" for p in pair)
    return f"logits of sequence {index + 1} of {count} do not belong together: {sizes}"
