"""Whose an error is: of a package that was called, or of code of ours that the package called back."""

from __future__ import annotations

from traceback import walk_tb

OURS = "qcompile"


def raised_by(error: BaseException, *packages: str) -> bool:
    """Return whether packages raised an error, in their own code or in what that called.

    Front ends call converters of ours. What a converter raises itself is a defect of ours and says nothing
    about the model; what the package says to what a converter asks of it is the package's.

    Args:
        error: That was caught.
        packages: Names of top-level modules.
    """
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    names = (str(name).partition(".")[0] for name in frames)
    known = [name for name in names if name in (*packages, OURS)]
    return bool(known) and known[-1] in packages
