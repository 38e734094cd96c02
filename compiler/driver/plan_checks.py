"""Names, budgets and plans that mean nothing here are refused before any work."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qcompile.compiler.driver import language, language_plans, running, weight_plans, weight_running
from qcompile.compiler.driver.budget import OPTIONS
from qcompile.compiler.driver.plan import Plan, with_plan
from qcompile.compiler.ir.errors import CalibrationError, ModelError, OutputError, TargetError
from qcompile.targets.plans import TensorChoices

if TYPE_CHECKING:
    from qcompile.compiler.driver.options import BuildOptions
    from qcompile.compiler.driver.target import Target
    from qcompile.compiler.frontend.load import Source


def check(source: Source, target: Target, options: BuildOptions) -> None:
    """Refuse budgets and plans that mean nothing here, and sizes that nothing reaches, before any work.

    Raises:
        BudgetError: Even the smallest file is too large.
        CalibrationError: A budget without calibration data.
        OutputError: The plan cannot be saved where it is wanted.
        TargetError: Anything else.
    """
    of_language = source.checkpoint is not None
    options.budget.check(options.gated and not of_language)
    if options.save_plan is not None and not options.save_plan.absolute().parent.is_dir():
        raise OutputError(f"{options.save_plan.absolute().parent} does not exist: make it first")
    if not options.plans:
        _check_unplanned(source, options)
    elif of_language:
        _check_language(source, target, options)
    else:
        _check_weights(source, target, options)


def check_names(source: Source, keep_float: frozenset[str]) -> None:
    """Refuse names of weights that the model does not have.

    Raises:
        ModelError: Names them, and those that there are.
    """
    if unknown := sorted(keep_float - set(source.graph.weights)):
        raise ModelError(
            f"the model has no weight {', '.join(unknown)}; "
            f"its weights are {', '.join(source.graph.weights)}"
        )


def _check_unplanned(source: Source, options: BuildOptions) -> None:
    if options.save_plan is not None:
        raise TargetError(f"--save-plan has no plan to save: give {OPTIONS}")
    if source.checkpoint is None and options.blocks.tensor_types:
        raise TargetError(
            "--tensor-type pins weights of a plan, and there is none: give --max-size, --target-bpw, "
            "--max-kl or --plan, or -p for all weights"
        )


def _check_language(source: Source, target: Target, options: BuildOptions) -> None:
    if options.calibrate is None and options.budget:
        raise CalibrationError(
            "a budget needs calibration data, which says what each format would cost: give --calibrate FILE"
        )
    running.check(source, target, options)
    choices = language_plans.choices(source, target, options)
    if options.plan_file is not None:
        plan = Plan.read(options.plan_file)
        _check_types(plan, choices, options.plan_file)
        own = with_plan(language.block_options(options), plan)
        assert source.checkpoint is not None
        target.emitter.check_checkpoint(source.checkpoint, target.scheme, own)
    else:
        language_plans.problem(source, target, options, choices).check(options.budget)


def _check_weights(source: Source, target: Target, options: BuildOptions) -> None:
    weight_running.check(target, options.budget)
    choices = weight_plans.early_choices(source, target, options)
    if options.plan_file is not None:
        _check_types(Plan.read(options.plan_file), choices, options.plan_file)
    else:
        weight_plans.check_size(choices, options.budget.max_size)


def _check_types(plan: Plan, choices: Sequence[TensorChoices], file: Path) -> None:
    """Refuse a plan of another model.

    Raises:
        TargetError: Names the tensors and types.
    """
    wanted = {
        name: [f.name for f in choice.formats] for choice in choices for name in choice.tensors
    }
    wrong = []
    if unknown := sorted(plan.types.keys() - wanted.keys()):
        wrong.append(f"it has {len(unknown)} tensors that the model has not ({unknown[0]}, ...)")
    if missing := sorted(wanted.keys() - plan.types.keys()):
        wrong.append(f"{len(missing)} tensors have no type in it ({missing[0]}, ...)")
    odd = [f"{n}={t}" for n, t in plan.types.items() if n in wanted and t not in wanted[n]]
    if odd:
        wrong.append(
            f"these cannot be stored so, or --tensor-type says otherwise: {', '.join(odd)}"
        )
    if wrong:
        raise TargetError(f"{file} is no plan of this model: {'; '.join(wrong)}")
