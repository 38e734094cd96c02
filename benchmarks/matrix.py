"""The examples for six devices as one matrix, beside the sum of single builds, in one run.

    python benchmarks/matrix.py --output PAGE.md

Single builds are fresh ``qcompile`` processes without a cache; the matrix begins with an empty one. Its
bundles are compared with those of single builds, byte for byte; a difference ends the run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pages import command_line, command_parser, publish, tell, working_folder
from report_mixed import environment

MODELS = ("mobilenet_v2", "resnet", "audio_lstm", "detector")
TARGETS = (
    "apple-m2", "apple-a17-pro", "raspberry-pi-5", "pixel-8", "galaxy-s24", "x86-avx512-vnni",
)  # fmt: skip
PACKAGES = ("onnx", "onnxruntime", "coremltools")
EXAMPLES = Path(__file__).parent.parent / "examples"
COMMAND = (sys.executable, "-P", "-m", "qcompile")


@dataclass(frozen=True)
class Cost:
    """What commands took.

    Args:
        name: Of what was done.
        seconds: From start to end.
        cpu: Seconds of all processes, in user and kernel mode.
        built: Bundles that were written.
    """

    name: str
    seconds: float
    cpu: float
    built: int


class Place:
    """A folder with the examples and their ``qcompile.toml``.

    Args:
        folder: Is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder / "project", folder / "cache"
        shutil.copytree(
            EXAMPLES, self.folder, ignore=shutil.ignore_patterns("build", "__pycache__")
        )
        models = "\n".join(f'[models.{name}]\npath = "{name}.py"' for name in MODELS)
        listed = ", ".join(f'"{target}"' for target in TARGETS)
        (self.folder / "qcompile.toml").write_text(f"{models}\n[matrix]\ntargets = [{listed}]\n")

    def single(self) -> Cost:
        """Build one after the other, as a user without a matrix would."""
        commands = [
            (
                *COMMAND,
                "build",
                f"{model}.py",
                "--target",
                target,
                "-o",
                f"single/{model}-{target}.qc",
            )
            for model in MODELS
            for target in TARGETS
        ]
        return self._run("single builds, one after the other", commands, len(commands))

    def matrix(self, name: str, jobs: int, built: int) -> Cost:
        """Build what changed."""
        given = ("--jobs", str(jobs), "--cache-dir", str(self.cache))
        return self._run(name, [(*COMMAND, "build", *given)], built)

    def fresh(self) -> None:
        """Forget the bundles, the lock and the cache."""
        shutil.rmtree(self.folder / "build", ignore_errors=True)
        shutil.rmtree(self.cache, ignore_errors=True)
        (self.folder / "qcompile.lock").unlink(missing_ok=True)

    def edit(self, model: str) -> None:
        """Change the text of a model and nothing that it computes."""
        with (self.folder / f"{model}.py").open("a") as file:
            file.write("\n# edited\n")

    def check(self) -> None:
        """Compare all bundles with those of single builds.

        Raises:
            RuntimeError: They differ; names all.
        """
        unlike = [
            name
            for name in sorted(os.listdir(self.folder / "single"))
            if _digest(self.folder / "single" / name) != _digest(self.folder / "build" / name)
        ]
        if unlike:
            raise RuntimeError(f"unlike single builds: {', '.join(unlike)}")

    def _run(self, name: str, commands: Sequence[Sequence[str]], built: int) -> Cost:
        tell(name)
        before, start = os.times(), time.perf_counter()
        for command in commands:
            done = subprocess.run(
                command, cwd=self.folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr[-800:]}")
        seconds, after = time.perf_counter() - start, os.times()
        cpu = sum(
            getattr(after, n) - getattr(before, n) for n in ("children_user", "children_system")
        )
        return Cost(name, seconds, cpu, built)


def measure(place: Place) -> list[Cost]:
    """Return what each way of building took."""
    count, each = len(MODELS) * len(TARGETS), len(TARGETS)
    costs = [place.single()]
    for jobs in (1, 2):
        place.fresh()
        costs.append(place.matrix(f"matrix, nothing kept, --jobs {jobs}", jobs, count))
        place.check()
    costs.append(place.matrix("nothing changed", 2, 0))
    place.edit(MODELS[0])
    costs.append(place.matrix(f"{MODELS[0]}.py edited, what it computes is the same", 2, each))
    shutil.rmtree(place.folder / "build")
    costs.append(place.matrix("bundles gone, cache kept: a fresh checkout", 2, count))
    return costs


def page(costs: Sequence[Cost]) -> str:
    """Return the table."""
    single = costs[0]
    lines = [
        "# Four models for six devices",
        "",
        f"{', '.join(MODELS)} of examples/ for {', '.join(TARGETS)}, each at the device's own precision. All",
        "bundles of both matrices were compared with those of single builds: equal in every byte.",
        "",
        "| what | bundles | s | of single builds | CPU s | of single builds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {c.name} | {c.built} | {c.seconds:.1f} | {c.seconds / single.seconds:.2f} | {c.cpu:.1f} | "
        f"{c.cpu / single.cpu:.2f} |"
        for c in costs
    ]
    facts = environment(command_line(sys.argv[1:]), 0, PACKAGES)
    facts.pop("images", None)
    facts["cores"] = str(os.cpu_count())
    return "\n".join(
        [*lines, "", "## Environment", "", *(f"- {k}: {v}" for k, v in facts.items()), ""]
    )


def _digest(folder: Path) -> str:
    hashed = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        hashed.update(str(file.relative_to(folder)).encode())
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = command_parser(__doc__)
    parser.add_argument("--output", type=Path, help="FILE.md")
    options = parser.parse_args(arguments)
    with working_folder(None) as folder:
        publish(page(measure(Place(folder))), options.output)


if __name__ == "__main__":
    main(sys.argv[1:])
