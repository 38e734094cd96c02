"""Work on batches side by side, with results that do not depend on how many workers there are.

Each worker runs its ops on one thread, so every sum has one order; results come back in the order of
the items. (One op on two threads may add in another order than on one: then bytes would depend on the
machine.)
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

_NAME = "qcompile-worker"
Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return ``function(item)`` for every item, in order; on a worker, one after the other."""
    if threading.current_thread().name.startswith(_NAME):
        return [function(item) for item in items]
    return list(_workers().map(function, items))


def total(function: Callable[[Item], tuple[Tensor, ...]], items: Sequence[Item]) -> list[Tensor]:
    """Return the sums of what ``function`` gives for every item, added in the order of the items.

    Only as many results as there are workers are held at once.
    """
    sums: list[Tensor] = []
    width = worker_count()
    for start in range(0, len(items), width):
        found = each(function, items[start : start + width])
        while found:
            parts = found.pop(0)
            sums = [_added(a, b) for a, b in zip(sums, parts, strict=True)] if sums else list(parts)
            del parts  # sums may be large: none is held longer than it is needed
    return sums


def _added(total: Tensor, part: Tensor) -> Tensor:
    """Return a sum, in the place of its first term if that is all its own."""
    return total.add_(part) if total.is_contiguous() and total.shape == part.shape else total + part


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(worker_count(), _NAME, initializer=_prepare)


os.register_at_fork(after_in_child=_workers.cache_clear)  # threads do not live on in a fork


def worker_count() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


@contextmanager
def one_thread_per_op() -> Iterator[None]:
    """Let the sums inside an op be in one order whatever the machine, so bytes do not depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
