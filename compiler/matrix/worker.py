"""The process that builds one model: requests on stdin, lines of JSON on stdout, one object each.

The model is loaded and exported once; each request is done in a fork of the process that has it
(``forks.py``), so that a build that fails harms no other. After each there is a line with its exit code,
``ended``. The process ends when it is told to, or when its stdin is closed: no work outlives the process that
asked for it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from qcompile.compiler.ir.errors import BudgetError, GateError
from qcompile.compiler.matrix.digests import expand
from qcompile.compiler.matrix.forks import CAN_FORK, Watch
from qcompile.compiler.matrix.reads import Reads
from qcompile.runtime.errors import QCompileError
from qcompile.runtime.manifest import FILE, file_sha256

END = "end"
"""The verb after which there are no more requests."""
Say = Callable[..., None]


def main() -> None:
    """Do what the lines of stdin ask for; all are about one model."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # some parents have it blocked
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a model file prints is no line of ours
    say, watch = _speaker(out), Watch(sys.stdin.fileno())
    watch.start()
    model = _Model(say)
    while (request := json.loads(sys.stdin.readline()))["verb"] != END:
        watch.temporary = Path(request["temporary"])
        tempfile.tempdir = os.environ["TMPDIR"] = request["temporary"]
        work = partial(_guarded, request, say, partial(_answer, request, model))
        if not CAN_FORK:
            work()
            return
        ready = _guarded(request, say, partial(_prepare, request, model))
        say(ended=watch.run(work) if ready else 0)


@dataclass
class _Model:
    """What all requests have in common.

    Args:
        say: Told that the model is loaded.
        reads: What was read of the project.
        source: The model, once it is loaded.
    """

    say: Say
    reads: Reads = field(default_factory=lambda: Reads(Path.cwd()))
    source: Any = None

    def load(self, path: str) -> Any:
        """Return the model; see ``frontend.load`` for what it raises."""
        if self.source is None:
            self.reads.watch()
            import torch

            from qcompile.compiler.frontend.load import load

            torch.set_num_threads(1)  # a pool of threads does not live on in a fork
            self.say(stage="load")
            self.source = load(path)
        return self.source


def _prepare(request: Mapping[str, Any], model: _Model) -> None:
    """Load the model, and import what its builds need; what of that is missing they will say."""
    model.load(request["path"])
    if request["verb"] == "build":
        from qcompile.compiler.driver.flat_options import build_options

        with suppress(QCompileError, ImportError):
            build_options(request["path"], request["flags"]).resolve().emitter.preload()


def _answer(request: Mapping[str, Any], model: _Model) -> None:
    work = {"build": _build, "plan": _plan}[request["verb"]]
    model.say(**work(request, model))


def _guarded(request: Mapping[str, Any], say: Say, work: Callable[[], object]) -> bool:
    """Do something; return whether it went well, and say it if it did not."""
    try:
        work()
    except QCompileError as error:
        say(**_failure(error))
    except Exception as error:
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        advice = f"build {request['path']} by itself with --debug and report what it prints"
        say(result="failed", error=f"qcompile failed ({said}); this is a defect: {advice}")
        traceback.print_exc()
    else:
        return True
    return False


def _build(request: Mapping[str, Any], model: _Model) -> dict[str, Any]:
    say = model.say
    folder = Path(request["bundle"])
    model.reads.add(expand(Path.cwd(), request["inputs"]))
    from qcompile.compiler.driver import build
    from qcompile.compiler.driver.flat_options import build_options
    from qcompile.compiler.driver.progress import Progress
    from qcompile.compiler.stages.options import CacheOptions
    from qcompile.targets.cache import cache_root

    start = time.perf_counter()
    going_on = {"resume": True, "start_over": True}
    options = build_options(request["path"], {**request["flags"], **going_on})
    options.resolve()
    progress = Progress(stage=lambda name: say(stage=name), note=lambda text: say(note=text))
    cache = CacheOptions.from_json(request["cache"])
    model.reads.leave_out([*cache.folders(), cache_root()])
    stages = cache.open(lambda text: say(note=text))
    source = model.load(request["path"])
    bundle = build(source, folder, options, force=True, progress=progress, stages=stages)
    shutil.rmtree(folder.with_name(f"{folder.name}.rejected"), ignore_errors=True)
    files, changed = model.reads.digests()
    return {
        "result": "built",
        "seconds": round(time.perf_counter() - start, 1),
        "files": files,
        "changed": changed,
        "sha256": file_sha256(bundle.path / FILE),
        "shared": sorted(set(stages.hits)),
    }


def _plan(request: Mapping[str, Any], model: _Model) -> dict[str, Any]:
    """Return what all builds of one model would give."""
    source = model.load(request["path"])
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
                      "token_ms": None, "note": "its size is known after calibration"}  # fmt: skip
    found = dry_run(source, options)
    sizes = {"artifact_bytes": found.artifact_bytes, "peak_ram_bytes": found.peak_ram_bytes}
    return row | sizes | {"token_ms": found.least_token_ms, "max_size": None, "note": ""}


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


if __name__ == "__main__":
    main()
