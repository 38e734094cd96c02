"""Makes a text that shows a difference as short as it can be.

Source: A. Zeller, R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, TSE 2002 (ddmin).
"""

from __future__ import annotations

from collections.abc import Callable

_PLAIN = ("a", " ", "1")  # what a character may be replaced with, once none can be left out


def shrink(text: str, fails: Callable[[str], bool], most_tries: int = 2000) -> str:
    """Return a text that fails and from which no character can be left out.

    Args:
        text: One that fails.
        fails: Does a text show the difference.
        most_tries: Stop after as many tries, with what was found by then.
    """
    tries = 0

    def test(candidate: str) -> bool:
        nonlocal tries
        tries += 1
        return tries <= most_tries and fails(candidate)

    return _plainer(_shorter(text, test), test)


def _shorter(text: str, fails: Callable[[str], bool]) -> str:
    size = max(len(text) // 2, 1)
    while True:
        found = _without_a_part(text, size, fails)
        if found is not None:
            text = found
            size = min(size, max(len(text) // 2, 1))
        elif size == 1:
            return text
        else:
            size //= 2


def _without_a_part(text: str, size: int, fails: Callable[[str], bool]) -> str | None:
    candidates = (text[:i] + text[i + size :] for i in range(0, len(text), size))
    return next(
        (candidate for candidate in candidates if candidate != text and fails(candidate)), None
    )


def _plainer(text: str, fails: Callable[[str], bool]) -> str:
    for i, character in enumerate(text):
        if character in _PLAIN:
            continue
        candidates = (text[:i] + plain + text[i + 1 :] for plain in _PLAIN)
        text = next((candidate for candidate in candidates if fails(candidate)), text)
    return text
