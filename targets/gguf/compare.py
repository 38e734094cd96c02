"""Is the file what the quantized graph is: tensors, arithmetic, tokenizer.

tensors     llama.cpp decodes the file into float32; each number equals the graph's
arithmetic  llama.cpp runs what it decoded; its logits are the graph's, to what float32 allows
artifact    llama.cpp runs the file; it rounds activations to 8 bits on the way, block by block
tokenizer   both tokenizers give the same ids for the same texts

Of a mixture of experts the median of the positions' logits counts when activations are rounded: a router near
a tie then takes another expert for a token, and no limit holds for it and for those that attend to it.

A model whose float32 form would take more than ``LARGEST`` is compared without the second: its tensors are
compared byte by byte as they lie in the file.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.quantization.records import sqnr_db
from qcompile.runtime.sessions.llama_cpp import Engine
from qcompile.targets.gguf.layout import BLOCKS, Layout, decoder_format
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized
from qcompile.targets.gguf.tokenizer.differences import tokenizer_differences
from qcompile.targets.gguf.twin import read_twin, write_twin

LARGEST = 1 << 30
"""Bytes: llama.cpp holds a float32 form in memory."""
FLOAT_LIMIT_DB = 60.0
ARTIFACT_LIMIT_DB = 20.0
"""Activations in 8 bits leave 35 to 45 dB of logits; a wrong scale or order leaves less than 10."""
PROOF = {
    "engine": "llama.cpp",
    "tensors": "each number that llama.cpp decodes equal to the quantized graph's; of models beyond 1 GiB "
    "in float32, each byte",
    "logits": "of the file itself (experts: the median position), and up to that size of what llama.cpp "
    "decoded, in float32",
    "tokenizer": "ids of the same texts from the source's tokenizer and from llama.cpp",
}
Row = dict[str, Any]


def engine_errors(
    layout: Layout,
    graph: Graph,
    artifact: Path,
    options: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Tensor],
) -> list[Row]:
    """Return a row a tensor, one a way of running, one for the tokenizer; see ``Emitter.engine_errors``.

    Args:
        layout: Of the file.
        graph: The quantized graph.
        artifact: The file.
        options: Of the engine.
        inputs: Token ids by the graph's name.
        outputs: What the graph gives for them, by its name; empty to let it run.
    """
    if not outputs:
        outputs = graph.run({name: torch.from_numpy(value) for name, value in inputs.items()})
    logits, ids = next(iter(outputs.values())), next(iter(inputs.values()))
    rows = [_tokenizer(layout, artifact)]
    if 4 * sum(math.prod(t.shape) for t in layout.tensors) <= LARGEST:
        rows += _float_rows(layout, graph, artifact, ids, logits)
    else:
        rows += list(_byte_rows(layout, graph, artifact))
    found = Engine(artifact, options, 1).run([ids])[0]
    rows.append(_logits("logits", logits, found, ARTIFACT_LIMIT_DB, routed=_is_routed(layout)))
    return rows


def _float_rows(
    layout: Layout, graph: Graph, artifact: Path, ids: Any, logits: Tensor
) -> list[Row]:
    twin = artifact.with_name("float32.gguf")
    try:
        write_twin(artifact, twin)
        rows = list(_tensor_rows(layout, graph, read_twin(twin)))
        found = Engine(twin, {"kv_type": "f32"}, 1).run([ids])[0]
    finally:
        twin.unlink(missing_ok=True)
    return [*rows, _logits("logits in float32", logits, found, FLOAT_LIMIT_DB)]


def _tensor_rows(layout: Layout, graph: Graph, decoded: Mapping[str, Any]) -> Iterator[Row]:
    for tensor in layout.tensors:
        expected = _numbers(tensor, graph)
        yield _exact(tensor.name, expected, torch.from_numpy(np.array(decoded[tensor.name])))


def _byte_rows(layout: Layout, graph: Graph, artifact: Path) -> Iterator[Row]:
    import gguf

    stored = {t.name: t.data for t in gguf.GGUFReader(artifact).tensors}
    for tensor in layout.tensors:
        if never_quantized(tensor.name, tensor.shape):
            expected = _numbers(tensor, graph)
        else:
            expected = tensor.rows([graph.weights[f"{name}{BLOCKS}"] for name in tensor.sources])
        found = torch.from_numpy(np.array(stored[tensor.name])).reshape(expected.shape)
        yield _exact(tensor.name, expected, found)


def _numbers(tensor: GgufTensor, graph: Graph) -> Tensor:
    """Return what the graph computes with in place of a tensor of the file."""
    if (
        never_quantized(tensor.name, tensor.shape)
        or f"{tensor.sources[0]}{BLOCKS}" not in graph.weights
    ):
        return tensor.numbers(graph.weights.__getitem__)
    parts = [
        BLOCK_FORMATS[decoder_format(graph, name)].decode(graph.weights[f"{name}{BLOCKS}"])
        for name in tensor.sources
    ]
    return tensor.rows(parts).reshape(tensor.shape)


def _exact(name: str, expected: Tensor, found: Tensor) -> Row:
    expected = expected.reshape(found.shape)
    share = largest = 0.0
    if not torch.equal(expected, found):
        share = float((expected != found).double().mean())
        largest = float((expected.double() - found.double()).abs().max())
    return {
        "name": name, "values": expected.numel(), "differing": share, "largest": largest,
        "sqnr_db": None, "exact": True,
    }  # fmt: skip


def _is_routed(layout: Layout) -> bool:
    """Return whether tokens choose experts."""
    config = layout.checkpoint.config
    return layout.architecture.hyperparameters(config).experts > 1


def _logits(name: str, expected: Tensor, found: Any, limit: float, *, routed: bool = False) -> Row:
    value = torch.from_numpy(np.array(found))
    quality = sqnr_db([(expected, value)])
    if routed:
        pairs = zip(expected.flatten(0, -2), value.flatten(0, -2), strict=True)
        quality = statistics.median(sqnr_db([pair]) or -math.inf for pair in pairs)
    difference = (expected.double() - value.double()).abs()
    return {
        "name": name, "values": expected.numel(), "limit_db": limit,
        "differing": float((difference > 0).double().mean()), "largest": float(difference.max()),
        "sqnr_db": quality if quality is not None and math.isfinite(quality) else -1000.0,
    }  # fmt: skip


def _tokenizer(layout: Layout, artifact: Path) -> Row:
    report = tokenizer_differences(layout.checkpoint.path, artifact)
    name = "tokenizer"
    if report.differences:
        name = f"tokenizer: {report.differences[0]}"
    return {
        "name": name, "values": report.cases, "differing": report.found / max(1, report.cases),
        "largest": float(report.found), "sqnr_db": None, "exact": True,
    }  # fmt: skip
