"""PyTorch's own version of a language model, with one module's weights in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qcompile.compiler.frontend.huggingface.directory import ModelDirectory
from qcompile.compiler.frontend.huggingface.language_model import (
    empty_model,
    matched,
    read_config,
    tied_names,
)
from qcompile.compiler.ir.weights import StoredTensor


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
    for prefix, module in model.named_modules():
        own = [name for name, p in module._parameters.items() if p is not None]
        full = {name: f"{prefix}.{name}".lstrip(".") for name in own}
        if own:
            stored = {name: found[tied.get(key, key)] for name, key in full.items()}
            _read_around(module, stored)
    return model


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
