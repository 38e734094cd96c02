"""``run.pyz``: run the bundle that it lies in, with numpy and the engine alone.

python run.pyz                          check the bundle's test vectors
python run.pyz --input x.npz -o y.npz   run on arrays keyed by input name
python run.pyz --bench                  latency
python run.pyz --prompt "Once upon"     what a language model says to it
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from qcompile.runtime import latency, vectors
from qcompile.runtime.errors import QCompileError
from qcompile.runtime.manifest import FILE, file_sha256
from qcompile.runtime.session import Session


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0, 1 if a vector failed, 2 if bundle or input is wrong."""
    parser = argparse.ArgumentParser(prog="run.pyz", description="Run or check this bundle.")
    parser.add_argument(
        "--bundle", type=Path, default=_own_folder(), help="default: beside this file"
    )
    parser.add_argument("--input", type=Path, help=".npz keyed by input name")
    parser.add_argument("-o", "--output", type=Path, help=".npz for the outputs")
    parser.add_argument("--bench", action="store_true", help="latency of one call, batch size 1")
    parser.add_argument("--prompt", help="for a language model, through its chat template")
    parser.add_argument("--max-tokens", type=int, default=256, help="of the answer to --prompt")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)
    try:
        if given.prompt is not None:
            return _answer(given)
        session = Session(given.bundle, threads=given.threads)
        if given.bench:
            of = {"manifest": file_sha256(session.folder / FILE), "threads": given.threads}
            print(json.dumps({**vars(latency.measure(session)), **of}))
            return 0
        if given.input:
            return _run(session, given.input, given.output)
        return _check(session)
    except (QCompileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _own_folder() -> Path:
    own = Path(sys.argv[0]).resolve()
    return own.parent if own.suffix == ".pyz" else Path.cwd()


def _answer(given: argparse.Namespace) -> int:
    from qcompile.runtime.generation import generate

    made = generate(given.bundle, given.prompt, max_tokens=given.max_tokens, threads=given.threads)
    for piece in made:
        print(piece, end="", flush=True)
    print()
    return 0


def _run(session: Session, file: Path, output: Path | None) -> int:
    found = session.run(vectors.read_arrays(file))
    if output is not None:
        vectors.save_arrays(output, found)
    for name, value in found.items():
        print(f"{name}: {value.dtype}{list(value.shape)}")
        if output is None:
            print(value)
    return 0


def _check(session: Session) -> int:
    results = vectors.check(session)
    for result in results:
        equal = "equal" if result.sqnr_db is None else f"{result.sqnr_db:.1f} dB"
        verdict = "ok" if result.passed else "FAILED"
        print(f"{verdict}  {result.output}: {equal}, needs {result.limit_db:.1f} dB")
    return 0 if all(r.passed for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
