"""Figures against PyTorch's own losses, and standard errors against resampling."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch.nn import functional

from qcompile.compiler.driver import language_quality
from qcompile.compiler.driver.language_quality import compare_logits, scored
from qcompile.compiler.ir.errors import ModelError

SEQUENCES, LENGTH, VOCABULARY = 5, 17, 40
FIRST, END = scored(LENGTH)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    shape = (SEQUENCES, END - FIRST, VOCABULARY)
    reference = random.normal(0, 3, shape).astype(np.float32)
    candidate = reference + random.normal(0, 0.5, shape).astype(np.float32)
    return reference, candidate, random.integers(0, VOCABULARY, (SEQUENCES, LENGTH))


def test_scored_positions_are_those_of_llama_cpp() -> None:
    """From n/2 on, n - 1 - n/2 of them: tools/perplexity scores no more."""
    assert scored(256) == (128, 255)
    assert scored(17) == (8, 16)
    assert scored(3) == (1, 2)


@pytest.mark.parametrize("block", [1, 3 * VOCABULARY, 1 << 22])
def test_figures_are_pytorchs(
    data: tuple[np.ndarray, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_quality, "_BLOCK", block)
    reference, candidate, tokens = data
    found = compare_logits(reference, candidate, tokens)
    p, q = (torch.from_numpy(x).double().reshape(-1, VOCABULARY) for x in (reference, candidate))
    targets = torch.from_numpy(tokens[:, FIRST + 1 : END + 1]).reshape(-1)
    kl = functional.kl_div(
        q.log_softmax(1), p.log_softmax(1), reduction="none", log_target=True
    ).sum(1)
    figures = found.figures
    assert (found.tokens, found.sequences) == (len(targets), SEQUENCES)
    for value, expected in (
        (figures.perplexity, functional.cross_entropy(q, targets).exp()),
        (figures.perplexity_reference, functional.cross_entropy(p, targets).exp()),
        (figures.kl.mean, kl.mean()),
        (figures.kl.median, kl.quantile(0.5)),
        (figures.kl.p99, kl.quantile(0.99)),
        (figures.kl.max, kl.max()),
        (figures.same_top, (p.argmax(1) == q.argmax(1)).double().mean()),
    ):
        assert value == pytest.approx(float(expected), rel=1e-12)
    assert 0.3 < figures.same_top < 1


def test_errors_are_those_of_resampling() -> None:
    """Close to the spread over 400 draws of as many tokens."""
    random = np.random.default_rng(1)
    shape = (40, 50, 30)
    tokens = random.integers(0, 30, (40, 101))
    reference = random.normal(0, 2, shape).astype(np.float32)
    candidate = reference + random.normal(0, 0.3, shape).astype(np.float32)
    found = compare_logits(reference, candidate, tokens)
    p, q = (
        torch.from_numpy(x).double().reshape(-1, 30).log_softmax(1) for x in (reference, candidate)
    )
    targets = torch.from_numpy(tokens[:, 51:]).reshape(-1, 1)
    kl = (p.exp() * (p - q)).sum(1).numpy()
    loss = -q.gather(1, targets)[:, 0].numpy()
    drawn = random.integers(0, len(kl), (400, len(kl)))
    errors = found.errors
    for value, spread, tolerance in (
        (errors.kl.mean, kl[drawn].mean(1).std(), 0.2),
        (errors.perplexity, np.exp(loss[drawn].mean(1)).std(), 0.2),
        (errors.kl.median, np.median(kl[drawn], 1).std(), 0.25),
        (errors.kl.p99, np.quantile(kl[drawn], 0.99, 1).std(), 0.4),  # of 9 values
    ):
        assert value == pytest.approx(float(spread), rel=tolerance)
    ordered = np.sort(kl)
    left_out = np.where(np.arange(len(kl)) == len(kl) - 1, ordered[-2], ordered[-1])
    jackknife = np.sqrt((len(kl) - 1) * left_out.var())
    assert errors.kl.max == pytest.approx(jackknife)


def test_errors_of_dependent_and_independent_tokens() -> None:
    """llama.cpp's formula where tokens are independent; that of sequences where they are copies."""
    random = np.random.default_rng(2)
    tokens = random.integers(0, 9, (6, 21))
    reference = random.normal(0, 2, (6, 10, 9)).astype(np.float32)
    candidate = reference + random.normal(0, 1, reference.shape).astype(np.float32)
    one = compare_logits(reference[:1], candidate[:1], tokens[:1])
    share = one.figures.same_top
    assert 0 < share < 1
    assert one.errors.same_top == pytest.approx((share * (1 - share) / 9) ** 0.5)
    copies = [np.repeat(x[:, :1], 10, axis=1) for x in (reference, candidate)]
    one_each = [x[:, :1] for x in (reference, candidate)]
    found = compare_logits(*copies, np.repeat(tokens[:, :1], 21, axis=1))
    expected = compare_logits(*one_each, np.repeat(tokens[:, :1], 3, axis=1))
    assert found.errors.kl.mean == pytest.approx(expected.errors.kl.mean)
    assert found.errors.perplexity == pytest.approx(expected.errors.perplexity)


def test_equal_models_and_shifted_logits(data: tuple[np.ndarray, ...]) -> None:
    """A constant added to the logits of a position changes no probability."""
    reference, _, tokens = data
    found = compare_logits(reference, reference + np.float32(8), tokens)
    assert found.figures.kl.max < 1e-10
    assert found.figures.same_top == 1
    assert found.figures.perplexity == pytest.approx(found.figures.perplexity_reference, rel=1e-6)
    assert compare_logits(reference, reference, tokens).figures.kl.max == 0


def test_tokens_that_cannot_come(data: tuple[np.ndarray, ...]) -> None:
    """Minus infinity in both is no divergence; in the candidate alone it is refused."""
    reference, candidate, tokens = (x.copy() for x in data)
    tokens[tokens == 7] = 8
    reference[..., 7] = candidate[..., 7] = -np.inf
    rest = [np.delete(x, 7, axis=2) for x in (reference, candidate)]
    expected = compare_logits(*rest, np.where(tokens > 7, tokens - 1, tokens))
    found = compare_logits(reference, candidate, tokens)
    assert vars(found.figures.kl) == pytest.approx(vars(expected.figures.kl), rel=1e-12)
    assert found.figures.perplexity == pytest.approx(expected.figures.perplexity, rel=1e-12)
    candidate[1, 2, 9] = -np.inf
    with pytest.raises(ModelError, match=r"not finite numbers: .*divergence at 1 of 40 positions"):
        compare_logits(reference, candidate, tokens)


def test_one_sequence_is_held_at_a_time(data: tuple[np.ndarray, ...]) -> None:
    reference, candidate, tokens = data
    order = []

    def told(name: str, values: np.ndarray) -> Iterator[np.ndarray]:
        for index, value in enumerate(values):
            order.append(f"{name}{index}")
            yield value

    compare_logits(told("r", reference), told("c", candidate), tokens)
    assert order == [f"{name}{index}" for index in range(SEQUENCES) for name in "rc"]


def test_what_does_not_belong_together(data: tuple[np.ndarray, ...]) -> None:
    reference, candidate, tokens = data
    cases = (
        (reference[:-1], candidate, "sequence 5 of 5 do not belong together: none and"),
        (reference, candidate[..., :-1], r"sequence 1 of 5 .* \[8, 40\] and \[8, 39\]"),
        (reference[:, 1:], candidate[:, 1:], "sequence 1 of 5"),
        (reference[:-1], candidate[:-1], "some are missing"),
        (reference, np.where(candidate > 0, np.nan, candidate), "the candidate's at 40 of 40"),
    )
    for first, second, message in cases:
        with pytest.raises(ModelError, match=message):
            compare_logits(first, second, tokens)
