"""The search for scales and grid vectors of lattice formats.

ggml rounds to the nearest point of the whole lattice and, where the grid lacks it, looks at neighbours.
Here each vector of the grid is weighed: for a scale s, the vector g of least sum of w (x - s g)^2 has
the largest 2 (w x) . g - s (w . g^2), and both products are matrix products that all scales share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS_AT_ONCE = 16
"""Blocks searched together: the two tables of products then stay in a core's cache."""

SHARES = (*(0.5 + 0.05 * i for i in range(13)), 1.3, 1.7, 2.5, 5.4, 15.0)
"""First scales of a sub-block, in units of its largest magnitude over the largest level. Above 5 (IQ2) and
15 (IQ3) all magnitudes are like the smallest level."""

REFINEMENTS = 2
"""How often vectors and scale are fitted to each other after the first choice."""

HIGHEST_SCALE = 15


@dataclass(frozen=True)
class Lattice:
    """What the search needs to know of a format; names as in ``LatticeFormat``."""

    grid: Tensor
    run: int
    unit: float


@dataclass(frozen=True)
class Found:
    """Codes int16 ``[blocks, vectors]``, d float16 ``[blocks]``, scales uint8 ``[blocks, runs]``."""

    codes: Tensor
    d: Tensor
    scales: Tensor


def search_lattice(x: Tensor, weights: Tensor, lattice: Lattice) -> Found:
    """Return the fields of least weighted squared error that the search finds.

    Args:
        x: ``[blocks, block]``, signs taken off.
        weights: Of the squared errors, the shape of ``x``.
        lattice: The grid.
    """
    parts = [
        _search_blocks(a, w, lattice)
        for a, w in zip(x.split(BLOCKS_AT_ONCE), weights.split(BLOCKS_AT_ONCE), strict=True)
    ]
    codes, d, scales = ([getattr(p, name) for p in parts] for name in ("codes", "d", "scales"))
    return Found(torch.cat(codes), torch.cat(d), torch.cat(scales))


class _Products:
    """The products of a part's vectors with all vectors of the grid."""

    def __init__(self, x: Tensor, weights: Tensor, lattice: Lattice) -> None:
        size = lattice.grid.shape[1]
        self.per_run = lattice.run // size
        self._linear = 2 * ((weights * x).reshape(-1, size) @ lattice.grid.T)
        self._square = weights.reshape(-1, size) @ lattice.grid.square().T
        self._gains = torch.empty_like(self._linear)

    def gain(self, step: Tensor) -> Tensor:
        """Return by how much the best codes at steps ``[runs]`` lower the error of each run."""
        gains = self._gains_at(step)
        best = gains.gather(1, first_largest(gains)[:, None])
        return best.reshape(-1, self.per_run).sum(1) * step

    def best(self, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best codes at steps ``[runs]``, and the sums of w x g and w g^2 of each run."""
        codes = first_largest(self._gains_at(step))[:, None]
        linear, square = self._linear.gather(1, codes), self._square.gather(1, codes)
        runs = (-1, self.per_run)
        return codes[:, 0], linear.reshape(runs).sum(1) / 2, square.reshape(runs).sum(1)

    def _gains_at(self, step: Tensor) -> Tensor:
        steps = step.repeat_interleave(self.per_run)[:, None]
        return torch.addcmul(self._linear, self._square, steps, value=-1, out=self._gains)


def first_largest(x: Tensor) -> Tensor:
    """Return ``x.argmax(1)``; numpy takes a tenth of the time."""
    return torch.from_numpy(x.detach().numpy().argmax(1))


def _search_blocks(x: Tensor, weights: Tensor, lattice: Lattice) -> Found:
    products = _Products(x, weights, lattice)
    wanted = _best_steps(x.reshape(-1, lattice.run).amax(1), products, lattice)
    steps = wanted.reshape(len(x), -1)
    d = steps.amax(1) / ((0.5 + HIGHEST_SCALE) * lattice.unit)
    for _ in range(REFINEMENTS):
        units = lattice.unit * d.half().float()
        divisor = torch.where(units > 0, units, torch.inf)[:, None]
        scales = (steps / divisor - 0.5).round().clamp(0, HIGHEST_SCALE)
        factors = (0.5 + scales) * lattice.unit
        codes, linear, square = products.best((d.half().float()[:, None] * factors).flatten())
        linear, square = linear.reshape(factors.shape), square.reshape(factors.shape)
        total = (square * factors.square()).sum(1)
        fitted = (linear * factors).sum(1) / torch.where(total > 0, total, torch.inf)
        d = torch.where(fitted > 0, fitted, d)
    return Found(codes.reshape(len(x), -1).to(torch.int16), d.half(), scales.to(torch.uint8))


def _best_steps(peaks: Tensor, products: _Products, lattice: Lattice) -> Tensor:
    """Return the step of each run of least error, free of the format's scales."""
    first = peaks.clamp(min=0) / lattice.grid.max()
    steps = torch.stack([first * share for share in SHARES])
    gains = torch.stack([products.gain(step) for step in steps])
    chosen = steps.gather(0, gains.argmax(0, keepdim=True))[0]
    _, linear, square = products.best(chosen)
    return torch.where(square > 0, linear / square, 0).clamp(min=0)
