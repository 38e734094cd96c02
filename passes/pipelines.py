"""The float pipeline, which every target runs first. What a target adds is in its emitter."""

from __future__ import annotations

from qcompile.passes.base import Pass
from qcompile.passes.graph.canonicalize import Canonicalize
from qcompile.passes.graph.eliminate_dead_code import EliminateDeadCode
from qcompile.passes.graph.fold_batch_norm import FoldBatchNorm
from qcompile.passes.graph.fold_constants import FoldConstants
from qcompile.passes.graph.remove_identity import RemoveIdentity
from qcompile.passes.graph.use_global_pooling import UseGlobalPooling


def float_pipeline() -> list[Pass]:
    """Return passes that leave the function as it is and its graph as small as it gets."""
    return [
        Canonicalize(),  # first: a view needs the copy before it, a reshape does not
        RemoveIdentity(),  # before folding: a dropout between a layer and its norm hides the pair
        FoldConstants(),
        FoldBatchNorm(),  # before any statistics: what is observed and stored is the folded weight
        UseGlobalPooling(),
        EliminateDeadCode(),
    ]
