"""``Layout``: the tensors and fields of the file that a checkpoint becomes in one mix."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qcompile.compiler.ir.blocks.catalog import BLOCK_FORMATS
from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.targets.gguf.architectures import Architecture, find_architecture
from qcompile.targets.gguf.container import StoredTensor
from qcompile.targets.gguf.general import general_fields
from qcompile.targets.gguf.mixes import MIXES, TensorTypes, summed, tensor_types
from qcompile.targets.gguf.tensors import GgufTensor, never_quantized
from qcompile.targets.gguf.tokenizer.fields import tokenizer_fields
from qcompile.targets.options import BlockOptions

BLOCKS = "_blocks"
"""What ``QuantizeBlocks`` adds to the name of a weight that is in blocks."""
_OF_PHI3 = {"</s>", "<s>", "<unk>", "<|endoftext|>"}


@dataclass(frozen=True)
class Layout:
    """What the file will hold.

    Args:
        checkpoint: Where the model comes from.
        architecture: Its family.
        mix: Name of the mix.
        tensors: In file order.
        chosen: The type of each.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    mix: str
    tensors: tuple[GgufTensor, ...]
    chosen: TensorTypes

    @classmethod
    def of(cls, checkpoint: Checkpoint, mix: str, options: BlockOptions) -> Layout:
        """Choose types as llama-quantize does, given the same overrides.

        Raises:
            UnsupportedError: No such family, or what llama.cpp would not compute in it.
            ModelError: Tensors are missing or have other shapes.
            TargetError: An override that fits nothing.
        """
        architecture = find_architecture(checkpoint.config)
        architecture.check(checkpoint.config)
        tensors = tuple(architecture.tensors(checkpoint.config, checkpoint.shapes))
        chosen = tensor_types(
            mix,
            {tensor.name: tensor.shape for tensor in tensors},
            architecture.hyperparameters(checkpoint.config),
            importance=options.informed,
            overrides=options.tensor_types,
        )
        return cls(checkpoint, architecture, mix, tensors, chosen)

    def formats(self, keep_float: frozenset[str] = frozenset()) -> dict[str, BlockFormat]:
        """Return the format of each weight that is stored in rows, by its name in the graph.

        Args:
            keep_float: Names that the user wants as float: they are stored as float16.
        """
        found: dict[str, BlockFormat] = {}
        for tensor in self.tensors:
            if not never_quantized(tensor.name, tensor.shape):
                kept = not keep_float.isdisjoint(tensor.sources)  # a tensor has one type
                name = "F16" if kept else self.chosen.types[tensor.name]
                found |= dict.fromkeys(tensor.sources, BLOCK_FORMATS[name])
        return found

    def fields(self) -> dict[str, Any]:
        """Return all fields, in file order.

        Raises:
            UnsupportedError: The tokenizer does what llama.cpp cannot.
        """
        words = tokenizer_fields(self.checkpoint.path, self.vocabulary)
        name = self._named(words["tokenizer.ggml.tokens"])
        general = general_fields(self.architecture.name, name, MIXES[self.mix].file_type)
        return {**general, **self.architecture.metadata(self.checkpoint.config), **words}

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding."""
        return next(t.shape[0] for t in self.tensors if t.name == "token_embd.weight")

    def notes(self) -> tuple[str, ...]:
        """Return what is not as one might expect."""
        own = self.architecture.notes(self.checkpoint.config)
        return (*own, *summed(self.chosen.fallbacks))

    def _named(self, tokens: Collection[str]) -> str:
        """Return the model's name; of one called phi3, llama.cpp wants some tokens (``llama-vocab.cpp``)."""
        name = self.checkpoint.path.resolve().name
        if self.architecture.name == "phi3" and set(tokens) >= _OF_PHI3:
            return name
        return name.replace("phi3", "phi 3").replace("phi-3", "phi 3")


def stored_tensors(layout: Layout, graph: Graph, *, floats: bool = False) -> list[StoredTensor]:
    """Return the file's tensors, which are read from the graph when their turn comes.

    Args:
        layout: Of the file.
        graph: The quantized graph.
        floats: Decode all blocks, and store float32.
    """
    return [_stored(tensor, layout, graph, floats) for tensor in layout.tensors]


def _stored(tensor: GgufTensor, layout: Layout, graph: Graph, floats: bool) -> StoredTensor:
    in_blocks = all(f"{name}{BLOCKS}" in graph.weights for name in tensor.sources)
    if never_quantized(tensor.name, tensor.shape) or not (tensor.sources and in_blocks):
        kind = "F32"
        return StoredTensor(
            tensor.name,
            tensor.shape,
            kind,
            lambda: _encoded(tensor.numbers(graph.weights.__getitem__)),
        )
    formats = {name: decoder_format(graph, name) for name in tensor.sources}
    if len(set(formats.values())) > 1:
        raise TargetError(
            f"{tensor.name} is made of {', '.join(tensor.sources)}, which have several formats: give all "
            "the same"
        )
    name = "F32" if floats else formats[tensor.sources[0]]

    def read(source: str) -> Tensor:
        data = graph.weights[f"{source}{BLOCKS}"]
        return _encoded(BLOCK_FORMATS[formats[source]].decode(data)) if floats else data

    return StoredTensor(tensor.name, tensor.shape, name, lambda: _runs(tensor, read))


def _runs(tensor: GgufTensor, read: Any) -> Iterator[Tensor]:
    return tensor.runs(read)


def _encoded(numbers: Tensor) -> Tensor:
    return BLOCK_FORMATS["F32"].encode(numbers.reshape(-1, numbers.shape[-1]))


def decoder_format(graph: Graph, name: str) -> str:
    """Return the format of a weight in blocks, by the weight's name."""
    data = next(n for n in graph.nodes if n.op == "get_attr" and n.target == f"{name}{BLOCKS}")
    return str(next(iter(data.users)).args[1])
