"""Observers: what each proposes, and that the choice is by measured error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qcompile.compiler.ir.quant import QuantParams, QuantSpec
from qcompile.passes.calibration.observers import BINS, OBSERVERS, Histogram, choose, histogram

UINT8 = QuantSpec(signed=False, symmetric=False)
INT8 = QuantSpec()
SPECS = st.sampled_from([UINT8, INT8, QuantSpec(bits=4, signed=False, symmetric=False)])


def _above_zero(x: Tensor) -> Tensor:
    return x.abs() + 3


def _below_zero(x: Tensor) -> Tensor:
    return -x.abs() - 1e-3


def _tiny(x: Tensor) -> Tensor:
    return x * 1e-20


KINDS = [torch.clone, torch.relu, torch.sinh, _above_zero, _below_zero, _tiny]


def _values(seed: int, kind: Callable[[Tensor], Tensor], count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [kind(torch.randn(2, 40, generator=generator) * 2) for _ in range(count)]


BATCHES = st.builds(
    _values, seed=st.integers(0, 1 << 16), kind=st.sampled_from(KINDS), count=st.integers(1, 4)
)


def params_of(spec: QuantSpec, low: float, high: float) -> QuantParams:
    return spec.params(torch.tensor(low), torch.tensor(high))


@settings(max_examples=30)
@given(batches=BATCHES, spec=SPECS)
def test_proposals_are_ranges_within_the_data(batches: list[Tensor], spec: QuantSpec) -> None:
    seen = histogram(batches)
    for name, propose in OBSERVERS.items():
        low, high = propose(seen, spec)
        assert seen.low <= low <= high <= seen.high, name
        assert float(params_of(spec, low, high).scale) > 0, name


@settings(max_examples=30)
@given(batches=BATCHES, spec=SPECS)
def test_mse_is_never_worse_than_min_max(batches: list[Tensor], spec: QuantSpec) -> None:
    seen = histogram(batches)
    errors = {
        name: seen.error(spec, params_of(spec, *OBSERVERS[name](seen, spec)))
        for name in ("min-max", "mse")
    }
    assert errors["mse"] <= errors["min-max"]


@settings(max_examples=30)
@given(batches=BATCHES, spec=SPECS)
def test_choice_has_the_least_error(batches: list[Tensor], spec: QuantSpec) -> None:
    choice = choose(histogram(batches), spec)
    assert set(choice.errors) == set(OBSERVERS)
    assert choice.error == choice.errors[choice.observer] == min(choice.errors.values())


@given(batches=BATCHES, pieces=st.integers(1, 7))
def test_counts_do_not_depend_on_the_batches(batches: list[Tensor], pieces: int) -> None:
    whole = histogram([torch.cat(batches)])
    split = histogram(list(torch.cat(batches).chunk(pieces)))
    assert (split.low, split.high) == (whole.low, whole.high)
    assert torch.equal(split.counts, whole.counts)
    for name in ("min-max", "percentile-99.99"):
        assert OBSERVERS[name](split, UINT8) == OBSERVERS[name](whole, UINT8)


@given(batches=BATCHES)
def test_min_max_is_the_data_and_zero(batches: list[Tensor]) -> None:
    together = torch.cat(batches)
    expected = min(0.0, float(together.min())), max(0.0, float(together.max()))
    assert OBSERVERS["min-max"](histogram(batches), UINT8) == expected


@pytest.mark.parametrize("share", [99.99, 99.999])
def test_percentile_is_numpys(share: float) -> None:
    name = f"percentile-{share}"
    x = torch.randn(400_000).exp() - 0.5
    low, high = OBSERVERS[name](seen := histogram([x]), UINT8)
    width = (seen.high - seen.low) / BINS
    expected = np.percentile(x.numpy(), [100 - share, share], method="inverted_cdf")
    assert (low, high) == pytest.approx(tuple(expected), abs=width)


def test_moving_average_is_of_each_batchs_extremes() -> None:
    seen = histogram([torch.tensor([-1.0, 2.0]), torch.tensor([-3.0, 12.0])])
    assert OBSERVERS["moving-average"](seen, UINT8) == pytest.approx((-1.2, 3.0))


@pytest.mark.parametrize("name", ["entropy", "percentile-99.99"])
def test_heavy_tails_are_clipped(name: str) -> None:
    seen = histogram([torch.distributions.StudentT(2.0).sample((200_000,))])
    low, high = OBSERVERS[name](seen, UINT8)
    assert high - low < 0.5 * (seen.high - seen.low)


def test_error_is_what_quantizing_gives() -> None:
    x = torch.randn(100_000)
    seen = histogram([x])
    for low, high in [(seen.low, seen.high), (-2.0, 2.0), (-1.0, 3.0)]:
        params = params_of(UINT8, low, high)
        measured = float((x - UINT8.fake_quantize(x, params)).square().mean())
        assert seen.error(UINT8, params) == pytest.approx(measured, rel=0.02)


def test_zeros_have_a_range() -> None:
    seen = histogram([torch.zeros(4), torch.zeros(4)])
    choice = choose(seen, UINT8)
    assert choice.error == 0
    assert float(choice.params.scale) > 0


@pytest.mark.parametrize("best", [(-0.6, 2.0), (-2.0, 2.0), (-1.5, 1.2)])
def test_search_finds_the_least_measured_error(best: tuple[float, float]) -> None:
    """An error that has its minimum off every proposal: the ends are moved there."""
    seen = histogram([torch.randn(10_000).clamp(-2, 2)])

    def measure(params: QuantParams, enough: float = 0.0) -> float:
        low = float(params.scale) * (UINT8.qmin - int(params.zero_point))
        high = float(params.scale) * (UINT8.qmax - int(params.zero_point))
        return (low - best[0]) ** 2 + (high - best[1]) ** 2

    choice = choose(seen, UINT8, measure)
    assert choice.error <= min(choice.errors.values())
    assert choice.error < 0.01
    assert choice.error == measure(choice.params)

    def stopping(params: QuantParams, enough: float) -> float:
        return min(measure(params), enough)

    assert choose(seen, UINT8, stopping).params == choice.params


def test_large_tensors_are_thinned() -> None:
    x = torch.randn(1 << 15)
    few, all_of_them = histogram([x], limit=1 << 10), histogram([x])
    assert float(few.counts.sum()) == 1 << 10
    assert (few.low, few.high) == (all_of_them.low, all_of_them.high)
    assert isinstance(few, Histogram)
