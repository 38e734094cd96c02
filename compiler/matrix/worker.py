"""The process of a build: a request on stdin, lines of JSON on stdout, one object each.

It ends when its stdin does, so that no work outlives the process that asked for it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from qcompile.compiler.ir.errors import BudgetError, GateError
from qcompile.compiler.matrix.digests import expand
from qcompile.compiler.matrix.reads import Reads
from qcompile.runtime.errors import QCompileError
from qcompile.runtime.manifest import FILE, file_sha256

Say = Callable[..., None]


def main() -> None:
    """Do what the first line of stdin asks for."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a model file prints is no line of ours
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    say = _speaker(out)
    work = {"build": _build, "plan": _plan}[request["verb"]]
    try:
        say(**work(request, say))
    except QCompileError as error:
        say(**_failure(error))
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = f"build {request['path']} by itself with --debug and report what it prints"
        say(result="failed", error=f"qcompile failed ({said}); this is a defect: {advice}")
        raise


def _build(request: Mapping[str, Any], say: Say) -> dict[str, Any]:
    root, folder = Path.cwd(), Path(request["bundle"])
    reads = Reads(root, expand(root, request["inputs"]))
    reads.watch()
    from qcompile.compiler.driver import build
    from qcompile.compiler.driver.flat_options import build_options
    from qcompile.compiler.driver.progress import Progress
    from qcompile.compiler.frontend.load import load

    start = time.perf_counter()
    going_on = {"resume": True, "start_over": True}
    options = build_options(request["path"], {**request["flags"], **going_on})
    options.resolve()
    progress = Progress(stage=lambda name: say(stage=name), note=lambda text: say(note=text))
    say(stage="load")
    bundle = build(load(request["path"]), folder, options, force=True, progress=progress)
    shutil.rmtree(folder.with_name(f"{folder.name}.rejected"), ignore_errors=True)
    files, changed = reads.digests()
    return {
        "result": "built",
        "seconds": round(time.perf_counter() - start, 1),
        "files": files,
        "changed": changed,
        "sha256": file_sha256(bundle.path / FILE),
    }


def _plan(request: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Return what all builds of one model would give."""
    from qcompile.compiler.frontend.load import load

    source = load(request["path"])
    rows = {}
    for name, flags in request["flags"].items():
        try:
            rows[name] = _row(source, request["path"], flags)
        except QCompileError as error:
            rows[name] = {"error": str(error)}
    return {"result": "planned", "rows": rows}


def _row(source: Any, path: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    from qcompile.compiler.driver import dry_run
    from qcompile.compiler.driver.flat_options import build_options

    options = build_options(path, flags)
    target = options.resolve()
    row = {"format": target.emitter.name, "precision": target.scheme.precision}
    if options.budget or (options.plans and source.checkpoint is None):
        limit = options.budget.max_size
        return row | {"artifact_bytes": None, "peak_ram_bytes": None, "max_size": limit,
                      "note": "its size is known after calibration"}  # fmt: skip
    found = dry_run(source, options)
    sizes = {"artifact_bytes": found.artifact_bytes, "peak_ram_bytes": found.peak_ram_bytes}
    return row | sizes | {"max_size": None, "note": ""}


def _failure(error: QCompileError) -> dict[str, Any]:
    if not isinstance(error, GateError):
        return {"result": "failed", "error": str(error)}
    found: dict[str, Any] = {"result": "gate", "error": str(error)}
    if isinstance(error, BudgetError):
        found["nearest"] = [dict(row) for row in error.nearest]
    if error.bundle is not None:
        found["rejected"] = str(error.bundle.path)  # type: ignore[attr-defined]
    return found


def _speaker(out: TextIO) -> Say:
    def say(**data: Any) -> None:
        out.write(json.dumps(data) + "\n")
        out.flush()

    return say


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(130)


if __name__ == "__main__":
    main()
