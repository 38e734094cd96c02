"""``qcompile MODEL --target NAME``, and ``qcompile build`` for the builds of ``qcompile.toml``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from qcompile.compiler.cli.cache import cache_of, cache_options
from qcompile.compiler.cli.common import Size, print_json, progress_display, reports_errors
from qcompile.compiler.stages.options import CacheOptions


def _complete_target(ctx: Any, param: Any, incomplete: str) -> list[str]:
    from qcompile.targets.device import device_names

    return [name for name in device_names() if name.startswith(incomplete)]


_OF_MATRICES = ("config", "only", "jobs", "executor", "ray_address", "locked")


class TensorType(click.ParamType):  # type: ignore[type-arg]
    """A regular expression and a type: ``ffn_down=q6_k``."""

    name = "tensor-type"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, str]:
        expression, sign, kind = value.rpartition("=")
        if not sign or not expression or not kind:
            self.fail(f"{value!r} is not REGEX=TYPE", param, ctx)
        return expression, kind


@click.command("build")
@click.argument("model", required=False)
@click.option("-c", "--config", type=click.Path(path_type=Path), metavar="FILE",
              help="Without MODEL: the file with the builds; default: qcompile.toml.")  # fmt: skip
@click.option("--only", multiple=True, metavar="NAME",
              help="Without MODEL: this model, target or build; repeatable.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True,
              help="Without MODEL: builds at once.")  # fmt: skip
@click.option("--executor", type=click.Choice(["local", "ray"]), default="local", show_default=True,
              help="Without MODEL: where builds run.")  # fmt: skip
@click.option("--ray-address", metavar="HOST:PORT", help="Of a Ray cluster; default: RAY_ADDRESS, "
              "or a Ray that is started here.")  # fmt: skip
@click.option(
    "--locked", is_flag=True, help="Without MODEL: refuse what is not as in qcompile.lock."
)
@click.option("-t", "--target", "--device", shell_complete=_complete_target,
              help="Device, host, a device file or a format; see `qcompile targets`.")  # fmt: skip
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The bundle; default NAME.qc."
)
@click.option(
    "-p",
    "--precision",
    help="int8, fp16, w8a8, int4, palette-4, ...; default: the device's; see `qcompile targets NAME`.",
)
@click.option("--format", help="Artifact format; default: the device's.")
@click.option("--calibrate", metavar="DATA", help="An .npz, .npy, .safetensors, folder of "
              ".npy, or `random`; default: the model file's calibration().")  # fmt: skip
@click.option("--num-samples", type=int, help="Calibration samples to use; default: all.")
@click.option("--seed", type=int, default=0, show_default=True, help="For choosing samples.")
@click.option("--granularity", type=click.Choice(["per-tensor", "per-channel", "per-group"]),
              help="What shares a scale or a palette; default: the precision's own.")  # fmt: skip
@click.option("--group-size", type=click.IntRange(min=1), help="Of --granularity per-group.")
@click.option("--palette-entries", type=click.Choice(["fp16", "int8"]), default="fp16",
              show_default=True, help="How a palette's values are stored.")  # fmt: skip
@click.option("--channel-scales", is_flag=True, help="Palettes with a scale a channel besides.")
@click.option("--minimum-os", metavar="VERSION", help="Oldest system to run on; default: the "
              "device's; see `qcompile targets NAME`.")  # fmt: skip
@click.option("--tune", type=int, default=0, metavar="N", help="tvm: measure N schedules "
              "of the operators that TVM schedules itself; goes on where it stopped.")  # fmt: skip
@click.option("--tune-database", type=click.Path(path_type=Path), metavar="FILE",
              help="Read measured schedules from here and add to them; default: the cache.")  # fmt: skip
@click.option(
    "--objects", is_flag=True, help="tvm: also write objects.tar, for apps that link themselves."
)
@click.option("--rounding", type=click.Choice(["nearest", "gptq", "adaround"]), default="gptq",
              show_default=True, help="How weights are rounded.")  # fmt: skip
@click.option("--tensor-type", type=TensorType(), multiple=True, metavar="REGEX=TYPE",
              help="gguf, and under a budget: the type of tensors whose name has this in it; "
              "repeatable.")  # fmt: skip
@click.option("--encoder", type=click.Choice(["qcompile", "ggml"]), default="qcompile",
              show_default=True, help="gguf: ggml gives llama.cpp's own bytes.")  # fmt: skip
@click.option("--imatrix", type=click.Path(path_type=Path), metavar="FILE",
              help="gguf: llama.cpp's importances, instead of --calibrate.")  # fmt: skip
@click.option("--seq-len", type=click.IntRange(min=2), metavar="N",
              help="gguf: tokens of a calibration sequence; default: 512, or the context.")  # fmt: skip
@click.option("--resume", is_flag=True, help="gguf, and under a budget: go on with what a "
              "killed build left.")  # fmt: skip
@click.option("--max-size", type=Size(), metavar="SIZE", help="The artifact's bytes at most; each "
              "tensor gets the format that serves the whole best.")  # fmt: skip
@click.option("--target-bpw", type=float, metavar="BITS",
              help="Bits of a weight at most, scales included, on average.")  # fmt: skip
@click.option("--max-ram", type=Size(), metavar="SIZE", help="Memory at most of a process that runs it "
              "(coreml: less the engine): weights, activations, keys and values of --context.")  # fmt: skip
@click.option("--context", type=int, metavar="N",
              help="Tokens that --max-ram has room for; default: what the model takes.")  # fmt: skip
@click.option("--kv-type", type=click.Choice(["f16", "f32", "q8_0"]), default="f16", show_default=True,
              help="gguf: how llama.cpp is to remember keys and values.")  # fmt: skip
@click.option("--max-latency", type=float, metavar="MS", help="Milliseconds at most of a token (gguf) or "
              "call: measured for the host; gguf, coreml: or modelled from the device file.")  # fmt: skip
@click.option("--max-kl", type=float, metavar="NATS", help="KL divergence from the original's "
              "predictions at most, measured in the artifact's engine.")  # fmt: skip
@click.option("--optimize", type=click.Choice(["quality", "size", "latency"]), help="What is improved "
              "once all limits hold, --min-sqnr and --max-drop too; default: quality, or size under "
              "--max-kl alone.")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE",
              help="Build a saved plan.")  # fmt: skip
@click.option("--save-plan", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the plan that was built.")  # fmt: skip
@click.option("--pareto", is_flag=True, help="Print the best plans of all sizes; build nothing.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE",
              help="With --pareto: draw them, as .svg or .html.")  # fmt: skip
@click.option("--ignore", multiple=True, metavar="WEIGHT", help="Keep this weight's layer float.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Gate: output SQNR against PyTorch.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Gate: fall of evaluate()'s metric. "
              "In int8 the layers that hurt stay float, as few as will do.")  # fmt: skip
@click.option("--evaluate/--no-evaluate", default=True, help="Run the model file's evaluate().")
@click.option("--max-host-ram", type=Size(), help="Memory: all that a language model's build takes, "
              "of others activations; these wait on disk. Default: 1GiB of activations.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan; calibrate and write nothing.")
@click.option("--dump-ir", type=click.Path(path_type=Path), metavar="DIR",
              help="Write the graph after each pass.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a bundle that is there; without MODEL: all.")
@cache_options
@reports_errors
def command(model: str | None, config: Path | None, only: tuple[str, ...], jobs: int, executor: str,
            ray_address: str | None, locked: bool, force: bool, as_json: bool,
            **given: Any) -> None:  # fmt: skip
    """Compile MODEL into a bundle, or build what changed of qcompile.toml.

    MODEL is a model file, package.module:factory, a .pt2 program, or a language model's Hugging Face
    directory. Without MODEL the builds, their options too, are those of qcompile.toml.
    """
    if model is not None:
        _refuse(_OF_MATRICES, "is for builds without MODEL")
        if given["target"] is None:
            missing = "Missing option '-t' / '--target' / '--device'."
            raise click.UsageError(missing, click.get_current_context())
        cache = cache_of(given, matrix=False)
        _build(model, force=force, cache=cache, as_json=as_json, **given)
        return
    from qcompile.compiler.cli import matrix
    from qcompile.compiler.matrix.executor import executor as find

    cache = cache_of(given, matrix=True)
    _refuse([name for name in given if name != "model"], "is for a single MODEL: give one, or write it "
            "into qcompile.toml")  # fmt: skip
    if executor != "ray":
        _refuse(["ray_address"], "is for --executor ray")
    matrix.build(config, only, jobs=jobs, executor=find(executor, ray_address), locked=locked,
                 force=force, cache=cache, as_json=as_json)  # fmt: skip


def _refuse(names: Iterable[str], why: str) -> None:
    """Refuse options that the user gave.

    Raises:
        UsageError: Names all of them.
    """
    context = click.get_current_context()
    given = [n for n in names if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise click.UsageError(f"{flags} {why}", context)


def _build(model: str, output: Path | None, dry_run: bool, pareto: bool, plot: Path | None, force: bool,
           cache: CacheOptions, as_json: bool, **given: Any) -> None:  # fmt: skip
    from qcompile.compiler.cli import show
    from qcompile.compiler.driver import build
    from qcompile.compiler.driver import dry_run as plan
    from qcompile.compiler.driver.flat_options import build_options
    from qcompile.compiler.driver.front import check_plot, front
    from qcompile.compiler.driver.write import check_destination, check_folder
    from qcompile.compiler.frontend.load import load

    options = build_options(model, given)
    options.resolve()
    if plot is not None:
        check_plot(plot, pareto=pareto)
    if output is not None and not (dry_run or pareto):
        check_destination(output, force=force)
    if options.dump_ir is not None:
        check_folder(options.dump_ir, "--dump-ir")
    with progress_display(quiet=as_json) as progress:
        source = load(model)
        if pareto:
            plans = front(source, options, progress)
        elif dry_run:
            found = plan(source, options)
        else:
            folder = output or Path(f"{source.name}.qc")
            stages = cache.open(progress.note)
            bundle = build(source, folder, options, force=force, progress=progress, stages=stages)
    if pareto:
        show.front(plans, plot, as_json=as_json)
    elif dry_run:
        print_json(found.as_json()) if as_json else show.plan(found)
    elif as_json:
        print_json(show.bundle_data(bundle))
    else:
        show.bundle(bundle)
