"""Which builds a file means, and with what options."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.compiler.cli.build import command
from qcompile.compiler.driver.flat_options import build_options
from qcompile.compiler.matrix.cells import RANDOM, Cell, cells, matches, possible
from qcompile.compiler.matrix.options import OPTION_NAMES
from qcompile.compiler.matrix.schema import Settings, json_schema
from qcompile.compiler.matrix.sizes import size

_FILE = """
[defaults]
min-sqnr = 20
ignore = ["b", "a"]
[models.a]
path = "a.py"
min-sqnr = 30
[models.b]
path = "b.py"
files = ["a.py"]
[targets.pi]
device = "raspberry-pi-5"
precisions = ["fp32"]
max-drop = 1
[matrix]
targets = ["apple-m2", "pi"]
precisions = ["int8", "palette-4"]
exclude = [{ model = "b", precision = "palette-*" }]
[[matrix.override]]
target = "apple-*"
min-sqnr = 40
max-size = "2KiB"
[[matrix.override]]
model = "a"
precision = "int8"
min-sqnr = 50
tensor-type = { x = "int4", a = "int8" }
"""
NOT_IN_THE_FILE = {
    "model", "config", "only", "jobs", "locked", "output", "pareto", "plot", "dry_run", "dump_ir", "force",
    "save_plan", "resume", "as_json", "debug", "target", "precision", "cache_dir", "cache_size", "no_cache",
    "remote_cache", "remote_cache_read_only", "executor", "ray_address",
}  # fmt: skip
"""Of the command: what names the build itself, and what is said of one run."""


def test_names_and_order(cells_of: Callable[[str], tuple[Cell, ...]]) -> None:
    assert [cell.name for cell in cells_of(_FILE)] == [
        "a-apple-m2-int8", "a-apple-m2-palette-4", "a-pi-fp32", "b-apple-m2-int8", "b-pi-fp32",
    ]  # fmt: skip


def test_a_models_own_precisions(cells_of: Callable[[str], tuple[Cell, ...]]) -> None:
    """They count before those of the target, which count before the matrix's."""
    changed = _FILE.replace("[models.b]", '[models.b]\nprecisions = ["fp16", "palette-4"]')
    assert [cell.name for cell in cells_of(changed)] == [
        "a-apple-m2-int8", "a-apple-m2-palette-4", "a-pi-fp32", "b-apple-m2-fp16", "b-pi-fp16",
    ]  # fmt: skip


def test_the_nearest_word_counts(cells_of: Callable[[str], tuple[Cell, ...]]) -> None:
    found = {cell.name: cell for cell in cells_of(_FILE)}
    assert {name: cell.flags["min_sqnr"] for name, cell in found.items()} == {
        "a-apple-m2-int8": 50, "a-apple-m2-palette-4": 40, "a-pi-fp32": 30, "b-apple-m2-int8": 40,
        "b-pi-fp32": 20,
    }  # fmt: skip
    assert found["a-pi-fp32"].flags == {
        "target": "raspberry-pi-5", "precision": "fp32", "min_sqnr": 30, "max_drop": 1, "ignore": ["a", "b"],
    }  # fmt: skip
    assert found["b-pi-fp32"].inputs == ["a.py", "b.py"]
    options = build_options("a.py", found["a-apple-m2-int8"].flags)
    assert options.budget.max_size == 2048
    assert options.blocks.tensor_types == (("a", "int8"), ("x", "int4"))
    assert options.keep_float == {"a", "b"}


def test_every_flag_of_a_build_has_a_key() -> None:
    flags = {parameter.name for parameter in command.params}
    assert flags - set(OPTION_NAMES) == NOT_IN_THE_FILE
    assert set(OPTION_NAMES) <= flags


def test_random_data_has_one_name() -> None:
    from qcompile.compiler.frontend.calibration_tables import RANDOM as OF_BUILDS

    assert RANDOM == OF_BUILDS


def test_each_option_reaches_the_build() -> None:
    said = {
        "max_size": 5,
        "seed": 3,
        "tune": 2,
        "kv_type": "f32",
        "group_size": 8,
        "plan": "p.json",
    }
    options = build_options("x.py", {"target": "host", **said})
    assert (options.budget.max_size, options.seed, options.tuning.trials) == (5, 3, 2)
    assert (options.blocks.kv_type, options.weights.group_size) == ("f32", 8)
    assert str(options.plan_file) == "p.json"


def test_the_schema_describes_every_key() -> None:
    found = json_schema()
    for table in found["$defs"].values():
        assert table["additionalProperties"] is False
        assert all("description" in key or "$ref" in key for key in table["properties"].values())
    keys = {name.replace("_", "-") for name in OPTION_NAMES}
    for table in ("Options", "Model", "Target", "Override"):
        assert keys <= set(found["$defs"][table]["properties"])
    assert found["$defs"]["Model"]["required"] == ["path"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("4GiB", 4 << 30), ("500MB", 500_000_000), ("1.5k", 1500), (1024, 1024), ("7", 7)],
)
def test_sizes(text: object, found: int) -> None:
    assert size(text) == found


_WORDS = st.lists(st.sampled_from(["p", "q", "r"]), unique=True)
_PATTERNS = st.fixed_dictionaries(
    {},
    optional={
        key: st.sampled_from(["p", "q", "*", "r*"]) for key in ("model", "target", "precision")
    },
)


@given(models=_WORDS, targets=_WORDS, precisions=_WORDS, exclude=st.lists(_PATTERNS, max_size=2))
def test_a_matrix_is_the_product_without_what_is_excluded(
    models: list[str], targets: list[str], precisions: list[str], exclude: list[dict[str, str]]
) -> None:
    settings = Settings.model_validate({
        "models": {name: {"path": f"{name}.py"} for name in models},
        "matrix": {"targets": targets, "precisions": precisions, "exclude": exclude},
    })  # fmt: skip
    everything = list(possible(settings))
    assert len(everything) == len(models) * len(targets) * max(1, len(precisions))
    left = {cell.name for cell in cells(settings)}
    for cell in everything:
        taken = any(matches(where, cell) for where in settings.matrix.exclude)
        assert (cell.name in left) is not taken
