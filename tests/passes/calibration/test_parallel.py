"""Work side by side: order, and work that asks for more."""

from __future__ import annotations

from qcompile.passes.calibration.parallel import each


def test_work_on_a_worker_may_ask_for_more() -> None:
    found = each(lambda i: each(lambda j: 10 * i + j, range(3)), range(8))
    assert found == [[10 * i + j for j in range(3)] for i in range(8)]
