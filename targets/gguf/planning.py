"""What the file will hold, before any weight is read."""

from __future__ import annotations

import torch

from qcompile.targets.gguf.activity import activity
from qcompile.targets.gguf.container import StoredTensor, predicted_bytes
from qcompile.targets.gguf.layout import Layout
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized
from qcompile.targets.plans import FilePlan, TensorPlan

KEPT = "kept float, as --ignore says"


def file_plan(layout: Layout, keep_float: frozenset[str] = frozenset()) -> FilePlan:
    """Return each tensor's type and bytes, and the exact size of the file.

    Args:
        layout: Of the file.
        keep_float: Names of weights that the user wants as float.
    """
    reasons = {fallback.tensor: str(fallback) for fallback in layout.chosen.fallbacks}
    stored = planned_tensors(layout, keep_float)
    plans = []
    for tensor, row in zip(layout.tensors, stored, strict=True):
        kept = not keep_float.isdisjoint(tensor.sources) and row.type_name == "F16"
        why = KEPT if kept else reasons.get(tensor.name, "")
        plans.append(TensorPlan(row.name, row.shape, row.type_name, row.nbytes, why))
    return FilePlan(
        tensors=tuple(plans),
        bytes=predicted_bytes(layout.fields(), stored),
        token_bytes=round(sum(activity(layout, row.name) * row.bytes for row in plans)),
        notes=layout.notes(),
    )


def planned_tensors(layout: Layout, keep_float: frozenset[str] = frozenset()) -> list[StoredTensor]:
    """Return the tensors of a file, without their data; see ``file_plan``."""
    formats = {source: f.name for source, f in layout.formats(keep_float).items()}
    return [_stored(tensor, formats) for tensor in layout.tensors]


def _stored(tensor: GgufTensor, formats: dict[str, str]) -> StoredTensor:
    kind = "F32"
    if tensor.sources and not never_quantized(tensor.name, tensor.shape):
        kind = formats[tensor.sources[0]]
    return StoredTensor(tensor.name, tensor.shape, kind, _nothing)


def _nothing() -> torch.Tensor:
    raise AssertionError("a plan holds no data")
