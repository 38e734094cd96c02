"""A Hugging Face directory -> a graph whose weights stay in their files.

The model is made on ``meta`` by transformers, its parameters are replaced by tensors that take no memory,
and it is exported once, with free batch and sequence. Weights are read by name when they are needed.
No code of the directory runs.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.huggingface.directory import ModelDirectory
from qcompile.compiler.frontend.huggingface.experts import (
    check_experts,
    each_by_itself,
    name_each,
    parameter_shapes,
    take_apart,
)
from qcompile.compiler.frontend.trace import trace
from qcompile.compiler.frontend.user_code import first_line, quiet
from qcompile.compiler.ir.errors import MissingPackageError, ModelError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.stored import StoredTensor, same_numbers
from qcompile.compiler.ir.weights import Weights, stand_in

INPUT = "input_ids"
_GROWING = ("dynamic", "longrope")
"""Rotary embeddings of transformers that change with the length of a text."""
OUTPUT = "logits"
_NOT_WEIGHTS = re.compile(r"(\.rotary_emb\.inv_freq|\.attn\.bias|\.attn\.masked_bias)$")
"""Tensors of older checkpoints that hold no weights: tables that every model computes anew."""
_SHOWN = 40
"""Names in a message: a mixture of experts has thousands."""


class _Logits(nn.Module):
    """A causal language model: token ids in, logits out, no cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Any:
        """Return logits ``[batch, sequence, vocabulary]``."""
        return self.model(input_ids=input_ids, use_cache=False).logits


@dataclass(frozen=True)
class Loaded:
    """What was made of a directory.

    Args:
        graph: Its weights have the names of the module's parameters, and stay in their files.
        shapes: Of the parameters, tied ones once.
        context: Positions that the model was made for.
        vocabulary: Rows of the embedding.
    """

    graph: Graph
    shapes: Mapping[str, tuple[int, ...]]
    context: int
    vocabulary: int


def load_graph(directory: ModelDirectory) -> Loaded:
    """Export the model of a directory.

    Raises:
        ModelError: Its architecture is unknown or runs code of its own, weights are missing or have
            other shapes, or the export fails.
        MissingPackageError: transformers is not installed.
    """
    config = read_config(directory)
    model = empty_model(directory, config)
    check_experts(directory.path, config, model)
    found = matched(directory, model)
    take_apart(model)
    _check_ties(directory, tied_names(model), found)
    context = min(int(getattr(config, "max_position_embeddings", 0) or 2048), _fix_rotations(model))
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                value = stand_in(tuple(parameter.shape), torch.float32)
                module._parameters[name] = nn.Parameter(value, requires_grad=False)
    graph = _export(_Logits(model), context)
    _name_as_stored(graph, tied_names(model))
    name_each(graph, found)
    _store(graph, found)
    shapes = {name: tensor.shape() for name, tensor in found.items()}
    return Loaded(graph, shapes, context, int(config.vocab_size))


def read_config(directory: ModelDirectory) -> Any:
    """Return transformers' configuration.

    Raises:
        ModelError: The architecture is not one of transformers' own.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingPackageError("transformers", "gguf") from error
    if "auto_map" in directory.config:
        raise ModelError(
            f"{directory.path} brings code of its own (auto_map), which is not run: "
            "only architectures that transformers itself has can be compiled"
        )
    try:
        return AutoConfig.from_pretrained(directory.path, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"transformers cannot read {directory.path / 'config.json'}: {first_line(error)}"
        ) from error


def empty_model(directory: ModelDirectory, config: Any) -> Any:
    """Return the model with parameters on ``meta`` and true buffers.

    Raises:
        ModelError: transformers has no such causal language model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet(), torch.device("meta"):
            kinds = AutoModelForCausalLM._model_mapping
            attention = _attention(kinds[type(config)]) if type(config) in kinds else "sdpa"
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=attention, dtype=torch.float32
            )
    except Exception as error:
        raise ModelError(
            f"transformers cannot make a causal language model of {directory.path}: "
            f"{first_line(error)}"
        ) from error
    _compute_buffers(model)
    return model.eval()


def _attention(kind: Any) -> str:
    """Return how attention is computed; gemma 2 caps its scores, which the fused op cannot."""
    return "sdpa" if getattr(kind, "_supports_sdpa", False) else "eager"


def _compute_buffers(model: Any) -> None:
    """Give buffers, tables that follow from the configuration, the values that transformers gives."""
    for module in model.modules():
        names = [n for n, b in module._buffers.items() if b is not None and b.is_meta]
        for name in names:
            shape, dtype = module._buffers[name].shape, module._buffers[name].dtype
            empty = torch.nan if dtype.is_floating_point else 0
            module._buffers[name] = torch.full(shape, empty, dtype=dtype)
        if names:
            model._init_weights(module)
    unset = [n for n, b in model.named_buffers() if b.is_floating_point() and b.isnan().any()]
    if unset:
        raise ModelError(
            f"transformers computes no value for {', '.join(unset)} of {type(model).__name__}: "
            "this architecture cannot be compiled yet"
        )


def _fix_rotations(model: Any) -> int:
    """Keep rotary tables as they are, and return the positions that these are for.

    Some kinds compute another table when a text gets long, which is no part of a graph: it is made for
    texts up to the length that the model was first trained for.
    """
    longest = sys.maxsize
    for module in model.modules():
        if getattr(module, "rope_type", "default") in _GROWING:
            module.rope_type = "default"
            longest = min(longest, int(module.original_max_seq_len))
    return longest


def matched(directory: ModelDirectory, model: Any) -> dict[str, StoredTensor]:
    """Return the stored tensor of each parameter by the parameter's name.

    Raises:
        ModelError: Parameters have no tensor or another shape, or tensors have no parameter; all named.
    """
    wanted = parameter_shapes(model)
    tied = tied_names(model)
    prefix = f"{model.base_model_prefix}."
    tensors = each_by_itself(directory.tensors)
    names = {_in_module(name, wanted, prefix): name for name in tensors}
    found = {
        n: replace(tensors[names[n]], finite=True) for n in wanted if n in names and n not in tied
    }
    missing = [n for n in wanted if n not in found and n not in tied]
    odd = sorted(s for n, s in names.items() if n not in wanted and not _NOT_WEIGHTS.search(s))
    shapes = {n: t.shape() for n, t in found.items()}
    wrong = [
        f"{n} is {list(shapes[n])}, not {list(wanted[n])}" for n in found if shapes[n] != wanted[n]
    ]
    problems = [
        *([f"it lacks {_listed(missing)}"] if missing else []),
        *([f"it has no place for {_listed(odd)}"] if odd else []),
        *([_listed(wrong)] if wrong else []),
    ]
    if problems:
        raise ModelError(
            f"the weights of {directory.path} do not fit its config.json: {'; '.join(problems)}"
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _check_ties(
    directory: ModelDirectory, tied: Mapping[str, str], found: Mapping[str, StoredTensor]
) -> None:
    """Refuse two stored tensors that are to be one and differ: transformers would use both."""
    different = [
        f"{name} and {other}"
        for name, other in tied.items()
        if name in directory.tensors
        and other in found
        and not same_numbers(directory.tensors[name], found[other])
    ]
    if different:
        raise ModelError(
            f"{directory.path} holds {', '.join(different)} with different values, and its config.json says "
            "that they are tied: set tie_word_embeddings to false there, if both are meant"
        )


def tied_names(model: Any) -> dict[str, str]:
    """Return parameters that are another one under a second name, as transformers says it."""
    return dict(getattr(model, "all_tied_weights_keys", None) or {})


def _in_module(name: str, wanted: Mapping[str, Any], prefix: str) -> str:
    """Return a stored tensor's name in the module: some checkpoints leave out the base model's name."""
    if name in wanted:
        return name
    if prefix + name in wanted:
        return prefix + name
    return name.removeprefix(prefix) if name.removeprefix(prefix) in wanted else name


def _export(module: nn.Module, context: int) -> Graph:
    axes = {
        INPUT: {
            0: torch.export.Dim("batch", min=1),
            1: torch.export.Dim("sequence", min=2, max=context),
        }
    }
    ids = torch.zeros(2, min(16, context), dtype=torch.int64)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        graph = trace(module, {INPUT: ids}, axes)
    graph.outputs = (OUTPUT,)
    return graph


def _name_as_stored(graph: Graph, tied: Mapping[str, str]) -> None:
    """Name the constants as the module without its wrapper does, tied ones by one name."""
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("model."):
            value = graph.weights.peek(str(node.target))
            name = str(node.target).removeprefix("model.")
            node.target = tied.get(name, name)
            graph.weights[node.target] = value


def _store(graph: Graph, found: Mapping[str, StoredTensor]) -> None:
    stored = {
        name: replace(found[name], dtype=torch.float32) for name in graph.weights if name in found
    }
    for name in stored:
        graph.weights[name] = graph.weights.peek(name).to("meta")
    graph.weights = Weights(graph.module, stored)
