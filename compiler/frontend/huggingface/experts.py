"""Mixtures of experts: transformers' fused experts as linear layers that compute the chosen tokens alone.

transformers holds the experts of a layer in two parameters, ``gate_up_proj`` [experts, 2 inner, width] and
``down_proj`` [experts, width, inner], and its plain way to run them loops over the experts that were
chosen, which cannot be exported. Here each projection of each expert is a weight of its own, called
``EXPERTS.NUMBER.gate_proj.weight`` (``up_proj``, ``down_proj``) whatever the checkpoint calls it, and
``qcompile::expert_linear`` runs them. The router stays transformers' own.

What checkpoints hold: each expert by itself, in two spellings, or both parameters as they are in memory.
Source: ``integrations/moe.py`` and ``conversion_mapping.py`` of transformers 5.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from qcompile.compiler.ir.errors import ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.ops import EXPERT_LINEAR
from qcompile.compiler.ir.stored import StoredTensor

FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""transformers' parameters, and the projections that each holds one after the other."""
_PLAIN = {
    "has_gate": True,
    "has_bias": False,
    "is_transposed": False,
    "is_concatenated": True,
    "has_post_expert_norm": False,
}
_SPELLINGS = (
    (re.compile(r"\bblock_sparse_moe\."), "mlp."),
    (re.compile(r"(\.experts\.\d+\.)w1\.weight$"), r"\1gate_proj.weight"),
    (re.compile(r"(\.experts\.\d+\.)w3\.weight$"), r"\1up_proj.weight"),
    (re.compile(r"(\.experts\.\d+\.)w2\.weight$"), r"\1down_proj.weight"),
)
"""Mixtral's names, and the others'."""


class RoutedExperts(nn.Module):
    """The experts of a layer while it is exported: one stands for all, as many weights would take long.

    Args:
        fused: transformers' module.
    """

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.act_fn = fused.act_fn
        for name, shape in _shapes(fused).items():
            layer = nn.Module()
            layer.weight = nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
            self.add_module(name, layer)

    def forward(self, hidden_states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        """Return the sum of what the chosen experts give.

        Args:
            hidden_states: ``[tokens, width]``.
            chosen: Experts of each token, ``[tokens, choices]``.
            shares: Of each in the sum.
        """
        gate, up, down = ([self.get_parameter(f"{p}_proj.weight")] for p in ("gate", "up", "down"))
        x = hidden_states[:, None]
        inner = self.act_fn(EXPERT_LINEAR(x, chosen, None, gate))
        inner = inner * EXPERT_LINEAR(x, chosen, None, up)
        return EXPERT_LINEAR(inner, chosen, shares, down).sum(1)  # type: ignore[no-any-return]


def name_each(graph: Graph, names: Collection[str]) -> None:
    """Let the layers of an exported graph read the weights of all experts.

    Args:
        graph: Of a module in which ``RoutedExperts`` stand for experts.
        names: Of all weights.
    """
    for node in graph.calls(EXPERT_LINEAR):
        *given, weights = node.args
        (one,) = cast("list[fx.Node]", weights)
        place, projection, _ = str(one.target).rsplit(".", 2)
        numbered = (f"{place}.{expert}.{projection}.weight" for expert in itertools.count())
        value, each = graph.weights.peek(str(one.target)), []
        with graph.before(node):
            for name in itertools.takewhile(names.__contains__, numbered):
                graph.weights[name] = value
                each.append(graph.module.graph.get_attr(name))
                graph.infer_constant(each[-1])
        node.args = (*given, each)
    graph.erase_unused()


def check_experts(path: Path, config: Any, model: nn.Module) -> None:
    """Refuse a mixture of experts that is built in another way than is known here.

    Raises:
        ModelError: Says so.
    """
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    found = [n for n in names if int(getattr(config, n, None) or 0) > 1]
    if found and not fused_experts(model):
        raise ModelError(
            f"{path} is a mixture of experts ({found[0]} = {getattr(config, found[0])}), and "
            f"{type(model).__name__} does not compute them as down(act(gate(x)) * up(x)) without biases: "
            "mixtures that do, such as Qwen3MoeForCausalLM and MixtralForCausalLM, can be compiled"
        )


def fused_experts(model: nn.Module) -> dict[str, Any]:
    """Return transformers' modules of experts that can be taken apart, by their place."""
    return {name: module for name, module in model.named_modules() if _is_plain(module)}


def take_apart(model: nn.Module) -> None:
    """Put ``RoutedExperts`` in the place of all experts: for export."""
    for place, module in fused_experts(model).items():
        model.set_submodule(place, RoutedExperts(module))


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters by name, tied ones under each name; of experts each by itself."""
    experts = fused_experts(model)
    found: dict[str, tuple[int, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        place, _, own = name.rpartition(".")
        if place not in experts:
            found[name] = tuple(parameter.shape)
            continue
        shapes = _shapes(experts[place])
        for expert in range(experts[place].num_experts):
            found |= {f"{place}.{expert}.{p}.weight": shapes[p] for p in FUSED[own]}
    return found


def each_by_itself(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return a checkpoint's tensors with each expert by itself, in the one spelling used here."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        place, _, own = name.rpartition(".")
        if place.endswith(".experts") and own in FUSED and len(tensor.shape()) == 3:
            found |= _taken_apart(place, FUSED[own], tensor)
        else:
            found[_respelled(name)] = tensor
    return found


def _taken_apart(
    place: str, projections: tuple[str, ...], tensor: StoredTensor
) -> Iterator[tuple[str, StoredTensor]]:
    """Yield the parts of a fused tensor."""
    experts, rows, _ = tensor.shape()
    size = rows // len(projections)
    for expert in range(experts):
        for number, projection in enumerate(projections):
            part = (number * size, (number + 1) * size)
            stored = replace(tensor, entry=expert, rows=part)
            yield f"{place}.{expert}.{projection}.weight", stored


def _respelled(name: str) -> str:
    for pattern, known in _SPELLINGS:
        name = pattern.sub(known, name)
    return name


def _is_plain(module: Any) -> bool:
    """Return whether a module is transformers' experts of gate, up and down, and nothing more."""
    gate = getattr(type(module), "_apply_gate", None)
    return (
        all(getattr(module, key, None) is value for key, value in _PLAIN.items())
        and getattr(gate, "__name__", "") == "_default_apply_gate"
        and set(module._parameters) == set(FUSED)
    )


def _shapes(fused: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each projection of one expert."""
    found: dict[str, tuple[int, ...]] = {}
    for name, projections in FUSED.items():
        _, rows, columns = fused._parameters[name].shape
        found |= {p: (rows // len(projections), columns) for p in projections}
    return found
