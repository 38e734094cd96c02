"""Weighted k-means of numbers on a line, solved exactly: by dynamic programming over sorted values.

The clusters of an optimum are runs of the sorted values. With F(m, j) the most that m runs of the
first j values save, and S the running sums of weights and of weight times value,
    F(m, j) = max over i <= j of  F(m-1, i) + (S1_j - S1_i)^2 / (S0_j - S0_i)
The best i grows with j and with m, so F(m, .) takes n log n steps: the middle j first, then each half
between the bounds that the middle gives. All rows of a batch take each step together.

Source: Wang and Song 2011, Ckmeans.1d.dp (https://doi.org/10.32614/RJ-2011-015); Wu 1991, Optimal
quantization by matrix searching; the bounds as in Gronlund et al. 2017 (arXiv 1701.07204), section 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

CELLS = 4096
"""Exact up to so many distinct values; more are gathered in so many cells."""
CHUNK = 1 << 16
"""Cells of the rows that are solved together: what a processor's cache holds."""
_TINY = 1e-300

Numbers = NDArray[np.float64]
Indices = NDArray[np.int64]


def kmeans(values: Tensor, weights: Tensor, count: int, cells: int = CELLS) -> Tensor:
    """Return the centers with the least weighted squared distance to their nearest values.

    Args:
        values: float64 ``[rows, n]``; each row is a problem of its own.
        weights: float64, the same shape, not negative, not all 0 in a row.
        count: Centers a row. Where fewer values differ, some centers are equal.
        cells: A row of more distinct values is solved for so many cells of near values.

    Returns:
        float64 ``[rows, count]``, ascending.
    """
    x, w = values.numpy(), weights.numpy()
    order = np.argsort(x, axis=1, kind="stable")
    x, w = np.take_along_axis(x, order, 1), np.take_along_axis(w, order, 1)
    middle = (w * x).sum(1, keepdims=True) / w.sum(1, keepdims=True)
    mass, moment = _gathered(x - middle, w, cells)
    rows = max(1, CHUNK // mass.shape[1])
    parts = [
        _solve(mass[i : i + rows], moment[i : i + rows], count) for i in range(0, len(x), rows)
    ]
    return from_numpy(np.concatenate(parts) + middle)


def _gathered(x: Numbers, w: Numbers, cells: int) -> tuple[Numbers, Numbers]:
    """Return weight and weight times value of each cell, ``[rows, cells]``; x is ascending."""
    if x.shape[1] <= cells:
        return w, w * x
    index = np.zeros(x.shape, dtype=np.int64)
    index[:, 1:] = np.cumsum(np.diff(x, axis=1) > 0, axis=1)
    many = index[:, -1] >= cells
    index[many] = _near(x[many], cells)
    flat = (index + cells * np.arange(len(x))[:, None]).ravel()
    shape = len(x), cells
    mass, moment = (
        np.asarray(np.bincount(flat, part.ravel(), len(x) * cells), dtype=np.float64).reshape(shape)
        for part in (w, w * x)
    )
    return mass, moment


def _near(x: Numbers, cells: int) -> Indices:
    """Return cells whose borders lie half by value and half by rank: fine where values are dense."""
    span = x[:, -1:] - x[:, :1]
    place = (x - x[:, :1]) / span + np.linspace(0, 1, x.shape[1])
    return np.minimum((place * (cells / 2)).astype(np.int64), cells - 1)


def _solve(mass: Numbers, moment: Numbers, count: int) -> Numbers:
    """Return the centers of each row."""
    zero = np.zeros((len(mass), 1))
    s0, s1 = (np.concatenate([zero, np.cumsum(m, axis=1)], axis=1) for m in (mass, moment))
    saved = s1**2 / np.maximum(s0, _TINY)
    choices = [np.zeros(saved.shape, dtype=np.int64)]
    for _ in range(count - 1):
        saved, choice = _next_layer(saved, choices[-1], s0, s1)
        choices.append(choice)
    rows, end = np.arange(len(mass)), np.full(len(mass), mass.shape[1])
    centers = np.empty((len(mass), count))
    for m in range(count - 1, -1, -1):
        start = choices[m][rows, end]
        weight = s0[rows, end] - s0[rows, start]
        mean = (s1[rows, end] - s1[rows, start]) / np.maximum(weight, _TINY)
        centers[:, m] = np.where(weight > 0, mean, np.nan)
        end = start
    return _filled(centers)


def _filled(centers: Numbers) -> Numbers:
    """Give empty runs the center of a neighbour."""
    for m in range(1, centers.shape[1]):
        centers[:, m] = np.where(np.isnan(centers[:, m]), centers[:, m - 1], centers[:, m])
    for m in range(centers.shape[1] - 2, -1, -1):
        centers[:, m] = np.where(np.isnan(centers[:, m]), centers[:, m + 1], centers[:, m])
    return np.sort(centers, axis=1)


def _next_layer(
    saved: Numbers, floor: Indices, s0: Numbers, s1: Numbers
) -> tuple[Numbers, Indices]:
    """Return F(m, .) and the best i for each j, from F(m-1, .) and its best i."""
    rows, n = saved.shape[0], saved.shape[1] - 1
    best, choice = np.zeros_like(saved), np.zeros((rows, n + 2), dtype=np.int64)
    choice[:, n + 1] = n
    step = 1 << n.bit_length()
    while step > 1:
        half = step // 2
        js = np.arange(half, n + 1, step)
        high = np.minimum(choice[:, np.minimum(js + half, n + 1)], js)
        low = np.minimum(np.maximum(choice[:, js - half], floor[:, js]), high)
        best[:, js], choice[:, js] = _best_between(saved, s0, s1, js, low, high)
        step = half
    return best, choice[:, : n + 1]


def _best_between(
    saved: Numbers, s0: Numbers, s1: Numbers, js: Indices, low: Indices, high: Indices
) -> tuple[Numbers, Indices]:
    """Return for each row and j the most that an i from low to high saves, and the first such i."""
    base = np.arange(len(saved))[:, None] * saved.shape[1]
    counts = (high - low + 1).ravel()
    starts = np.cumsum(counts) - counts
    owner = np.repeat(np.arange(len(counts)), counts)
    index = np.arange(len(owner)) + ((low + base).ravel() - starts)[owner]
    at = (js + base).ravel()
    difference = s1.ravel()[at][owner] - s1.ravel()[index]
    weight = s0.ravel()[at][owner] - s0.ravel()[index]
    total = difference * difference / np.maximum(weight, _TINY) + saved.ravel()[index]
    most = np.maximum.reduceat(total, starts)
    (hits,) = np.nonzero(total == most[owner])
    first = np.empty(len(counts), dtype=np.int64)
    first[owner[hits[::-1]]] = hits[::-1]
    chosen = first - starts + low.ravel()
    return most.reshape(low.shape), chosen.reshape(low.shape)
