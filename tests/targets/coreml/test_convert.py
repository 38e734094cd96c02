"""What a converter of ours raises is not taken for a refusal of coremltools."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qcompile.targets.coreml import lowering

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""coremltools leaves its temporary folder to be collected where a conversion fails."""


def test_a_defect_of_a_converter_is_no_refusal(
    emit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*given: Any) -> Any:
        raise ValueError("a defect of ours")

    monkeypatch.setattr(lowering, "arguments", defect)
    with pytest.raises(ValueError, match="a defect of ours"):
        emit(nn.Linear(4, 3), torch.randn(2, 4))
