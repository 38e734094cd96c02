"""docs/coreml-ops.md says what the registry and coremltools' say."""

from __future__ import annotations

from pathlib import Path

from qcompile.targets.coreml.reference import table
from qcompile.targets.coreml.reference.control import CONTROL
from qcompile.targets.coreml.reference.registry import operators
from qcompile.targets.coreml.tools import load_coremltools

DOCUMENT = Path(__file__).parents[4] / "docs" / "coreml-ops.md"


def test_the_document_is_what_the_generator_prints() -> None:
    again = "run python -m qcompile.targets.coreml.reference.table > docs/coreml-ops.md"
    assert DOCUMENT.read_text(encoding="utf-8") == table.text(), again


def test_every_op_of_coremltools_runs_or_is_absent_for_a_reason() -> None:
    load_coremltools()
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    all_ops = {*SSAOpRegistry.core_ops, *SSAOpRegistry.dialect_ops}
    rows, absent = {row.name: row for row in table.rows()}, table.absent()
    assert all_ops - set(rows) == set(absent)
    assert not set(rows) & set(absent)
    assert [row.name for row in rows.values() if row.family is None] == []
    assert {*operators(), *CONTROL} == set(rows), "and the interpreter has none that is not MIL's"


def test_versions_and_writers() -> None:
    rows = {row.name: row for row in table.rows()}
    assert rows["gru"].since == (15, 17, 18)
    assert rows["topk"].since == (15, 16, 17)
    assert rows["read_state"].since == (18,)
    assert rows["constexpr_blockwise_shift_scale"].written_by == "qcompile"
    assert rows["conv"].written_by == "the front end"
    assert rows["classify"].written_by == "a pass"
    assert rows["list_scatter"].written_by == ""
