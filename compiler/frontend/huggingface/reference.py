"""PyTorch's own version of a language model, with the weights of one module or expert in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.huggingface.directory import ModelDirectory
from qcompile.compiler.frontend.huggingface.experts import FUSED, fused_experts
from qcompile.compiler.frontend.huggingface.language_model import (
    empty_model,
    matched,
    read_config,
    tied_names,
)
from qcompile.compiler.ir.stored import StoredTensor


class Reference(nn.Module):
    """The model of a directory as transformers runs it, in float32; made when it is first called.

    Args:
        directory: Its weights are read again at each call.
    """

    def __init__(self, directory: ModelDirectory) -> None:
        super().__init__()
        self._directory = directory
        self._made: list[Any] = []  # a list, so that the module is not a submodule

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits ``[batch, sequence, vocabulary]``."""
        if not self._made:
            self._made.append(_streaming(self._directory))
        logits: Tensor = self._made[0](input_ids=input_ids, use_cache=False).logits
        return logits


def _streaming(directory: ModelDirectory) -> Any:
    model = empty_model(directory, read_config(directory))
    found, tied = matched(directory, model), tied_names(model)
    for place, experts in fused_experts(model).items():
        _read_chosen(place, experts, found)
    for prefix, module in model.named_modules():
        own = [name for name, p in module._parameters.items() if p is not None]
        full = {name: f"{prefix}.{name}".lstrip(".") for name in own}
        if own:
            stored = {name: found[tied.get(key, key)] for name, key in full.items()}
            _read_around(module, stored)
    return model


class _Stack:
    """What stands for the fused parameter of all experts: one is read when it is asked for."""

    def __init__(self, parts: Sequence[Sequence[StoredTensor]]) -> None:
        self._parts = parts

    def __getitem__(self, expert: Any) -> Tensor:
        parts = [part.load().to(torch.float32) for part in self._parts[int(expert)]]
        return torch.cat(parts)


def _read_chosen(place: str, experts: Any, found: Mapping[str, StoredTensor]) -> None:
    """Let transformers' loop over the chosen experts read each when it comes to it."""
    experts.config._experts_implementation = "eager"
    for name, projections in FUSED.items():
        parts = [
            [found[f"{place}.{expert}.{p}.weight"] for p in projections]
            for expert in range(experts.num_experts)
        ]
        del experts._parameters[name]
        setattr(experts, name, _Stack(parts))


def _read_around(module: nn.Module, stored: Mapping[str, StoredTensor]) -> None:
    """Let a module read its weights before it runs, and forget them after."""
    empty = dict(module._parameters)

    def read(_: nn.Module, inputs: object) -> None:
        for name, tensor in stored.items():
            value = replace(tensor, dtype=torch.float32).load()
            module._parameters[name] = nn.Parameter(value, requires_grad=False)

    def forget(_: nn.Module, inputs: object, output: object) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(read)
    module.register_forward_hook(forget)
