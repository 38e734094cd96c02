"""A lock on a folder, the operating system's: it ends with the process, and leaves no file behind."""

from __future__ import annotations

import os
from pathlib import Path


def lock_folder(folder: Path) -> int | None:
    """Return an open folder that is locked; ``None`` if another process has locked it.

    Where folders cannot be locked (Windows, some network file systems), it is open and no more.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        import fcntl

        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    except (ImportError, OSError):
        pass
    return opened
