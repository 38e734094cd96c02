"""Which share of each tensor a token reads: that is what its time is made of."""

from __future__ import annotations

from qcompile.targets.gguf.layout import Layout

TABLE, OUTPUT = "token_embd.weight", "output.weight"
_EXPERTS = "_exps."


def activity(layout: Layout, name: str) -> float:
    """Return the share of a tensor that a token reads.

    A table of embeddings is looked up, and read as a whole only where the output layer is the same one; of
    experts a token reads those that its router takes.
    """
    if name == TABLE:
        return float(all(tensor.name != OUTPUT for tensor in layout.tensors))
    if _EXPERTS not in name:
        return 1.0
    fields, family = layout.fields(), layout.architecture.name
    return float(fields[f"{family}.expert_used_count"] / fields[f"{family}.expert_count"])
