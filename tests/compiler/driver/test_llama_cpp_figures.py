"""The figures of llama.cpp's own tools on the same model, calibration text, test text and context.

llama-imatrix, llama-quantize and llama-perplexity gave, at context 256: perplexity 42.56 in float32, and
a mean KL divergence of .003463 for q4_k_m and .043089 for q2_k. Here the imatrix is PyTorch's, through a
file, and the divergence is measured from PyTorch in float32. On another CPU than that of the tools it was
0.3 % less for q4_k_m; so the tools' figures have to be within the standard error of ours.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompile.compiler.driver.language_models import GgufModel, TorchModel
from qcompile.compiler.driver.language_quality import compare_logits
from qcompile.compiler.frontend.texts import read_texts
from qcompile.targets.gguf.imatrix import Imatrix, read_imatrix, write_imatrix

CONTEXT = 256
NAMES = {
    **{f"self_attn.{n}_proj": f"attn_{n}" for n in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")},
}


def _collect(folder: Path, text: Path, file: Path) -> None:
    """Write the imatrix of a text: mean squares of what each linear layer is given."""
    model = TorchModel(folder)
    texts = read_texts(text, model.words, CONTEXT)
    sums: dict[str, torch.Tensor] = {}

    def watch(name: str) -> Any:
        def add(_: Any, given: Any) -> None:
            squares = given[0].double().square().sum((0, 1))
            sums[name] = sums.get(name, 0) + squares

        return add

    for name, module in model._module.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").split(".", 1)
            module.register_forward_pre_hook(watch(f"blk.{layer}.{NAMES[part]}.weight"))
    for _ in model.logits(texts.ids):
        pass
    count = texts.ids.size
    write_imatrix(
        file,
        Imatrix(
            {name: (value / count).float().numpy()[None] for name, value in sums.items()},
            {name: np.array([count], np.float32) for name in sums},
            CONTEXT,
            len(texts.ids),
            (text.name,),
        ),
    )


def _quantize(source: Path, file: Path, kind: int, imatrix: Imatrix) -> Path:
    llama = pytest.importorskip("llama_cpp").llama_cpp
    table = (llama.llama_model_imatrix_data * (len(imatrix.values) + 1))()
    for row, (name, values) in zip(table, imatrix.values.items(), strict=False):
        row.name, row.size = name.encode(), values.size
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.imatrix = kind, table
    assert not llama.llama_model_quantize(
        str(source).encode(), str(file).encode(), ctypes.byref(settings)
    )
    return file


@pytest.mark.slow
def test_the_same_figures(
    shared: Path, language_model: Path, language_gguf: Path, tmp_path: Path
) -> None:
    _collect(language_model, shared / "text" / "calibration.txt", tmp_path / "imatrix.gguf")
    imatrix = read_imatrix(tmp_path / "imatrix.gguf")
    model = TorchModel(language_model)
    tokens = read_texts(shared / "text" / "test.txt", model.words, CONTEXT).ids
    reference = list(model.logits(tokens))
    for name, kind, divergence in (("q4_k_m", 15, 0.003463), ("q2_k", 10, 0.043089)):
        file = _quantize(language_gguf, tmp_path / f"{name}.gguf", kind, imatrix)
        found = compare_logits(reference, GgufModel(file).logits(tokens), tokens)
        figures, error = found.figures, found.errors.kl.mean
        assert figures.perplexity_reference == pytest.approx(42.56, abs=0.005)
        assert error < 0.02 * divergence
        assert figures.kl.mean == pytest.approx(divergence, abs=error)
