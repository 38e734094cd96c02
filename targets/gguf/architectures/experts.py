"""Mixtures of experts: the file holds each projection of all experts as one tensor of three axes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from qcompile.targets.gguf.architectures.base import Rule, Sizes, renamed
from qcompile.targets.gguf.tensors import GgufTensor, Part

PROJECTIONS = {part: f"{part}_proj" for part in ("gate", "up", "down")}
"""Names of most checkpoints, and those that the front end gives."""
_FUSED = {"gate": ("gate_up_proj", 0), "up": ("gate_up_proj", 1), "down": ("down_proj", 0)}


def expert_rules(
    layer: int, sizes: Sizes, names: Collection[str], block: str, projections: dict[str, str]
) -> Iterator[Rule]:
    """Yield the router and the experts of a layer.

    Args:
        layer: Its number.
        sizes: Of the model.
        names: Of the checkpoint: transformers 5 may have fused the experts of a layer under ``mlp``.
        block: Name of the mixture in a layer of a checkpoint that has each expert by itself.
        projections: Names there of ``gate``, ``up`` and ``down``; a graph's are ``PROJECTIONS``, under
            ``mlp``.
    """
    place = f"model.layers.{layer}.mlp.experts"
    fused = f"{place}.gate_up_proj" in names
    if fused or f"{place}.0.{PROJECTIONS['gate']}.weight" in names:
        block, projections = "mlp", PROJECTIONS
    router = f"{block}.gate.weight"
    yield from renamed(layer, [("ffn_gate_inp.weight", router, (sizes.experts, sizes.width))])
    for part in ("gate", "up", "down"):
        shape = (sizes.width, sizes.inner) if part == "down" else (sizes.inner, sizes.width)
        if fused:
            yield _fused(layer, sizes, part, shape)
        else:
            yield _stacked(layer, sizes, part, shape, f"{block}.experts", projections[part])


def _stacked(
    layer: int, sizes: Sizes, part: str, shape: tuple[int, int], place: str, projection: str
) -> Rule:
    sources = tuple(
        f"model.layers.{layer}.{place}.{expert}.{projection}.weight"
        for expert in range(sizes.experts)
    )
    return Rule(GgufTensor(_name(layer, part), (sizes.experts, *shape), sources), shape)


def _fused(layer: int, sizes: Sizes, part: str, shape: tuple[int, int]) -> Rule:
    source, number = _FUSED[part]
    parts = 1 if part == "down" else 2
    order = Part(number, parts, sizes.experts) if parts > 1 else None
    place = f"model.layers.{layer}.mlp.experts.{source}"
    tensor = GgufTensor(_name(layer, part), (sizes.experts, *shape), (place,), order)
    return Rule(tensor, (sizes.experts, parts * shape[0], shape[1]))


def _name(layer: int, part: str) -> str:
    return f"blk.{layer}.ffn_{part}_exps.weight"
