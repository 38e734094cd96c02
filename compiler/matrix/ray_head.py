"""The process of a Ray of this machine: a line of JSON on stdout says where it is.

It ends when its stdin does, however the process ended that began it; then nothing is left of Ray.
"""

from __future__ import annotations

import json
import os
import sys
from tempfile import TemporaryDirectory
from typing import Any

_FOLDER = "/tmp"  # Ray's sockets lie in it, whose paths have at most 107 characters
_STORE_BYTES = 80 << 20  # results are small; Ray takes no less than 75 MiB


def main() -> None:
    """Start Ray with the CPUs that the command line says, and wait."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what Ray prints is no line of ours
    with TemporaryDirectory(
        prefix="qcompile-ray-", dir=_FOLDER, ignore_cleanup_errors=True
    ) as name:
        out.write(json.dumps(_start(int(sys.argv[1]), name)) + "\n")
        out.flush()
        sys.stdin.buffer.read()
        import ray

        ray.shutdown()


def _start(cpus: int, folder: str) -> dict[str, Any]:
    import ray

    try:
        found = ray.init("local", num_cpus=cpus, object_store_memory=_STORE_BYTES, _temp_dir=folder,
                         include_dashboard=False, log_to_driver=False, logging_level="ERROR")  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    return {"address": found.address_info["gcs_address"]}


if __name__ == "__main__":
    main()
