"""``GgufTensor``: how a tensor of the file is made from tensors of the checkpoint.

A matrix may come as numbers or already encoded, uint8 ``[rows, bytes a row]``. So all that is done to one
is said about its rows, which are there in either form: some of them, in another order, from one or more
sources after one another.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class RowMap(ABC):
    """Which rows of a tensor's sources, laid one after the other, are its own."""

    @abstractmethod
    def index(self, rows: int) -> Tensor:
        """Return the numbers of the rows to take, int64, of so many."""


@dataclass(frozen=True)
class Interleaved(RowMap):
    """The two halves of each head in turn: rotary embeddings of pairs of neighbours, not of halves.

    llama.cpp rotates elements 2i and 2i+1 of a head in the ``llama`` architecture; Hugging Face's
    checkpoints hold them i and i + head_dim / 2.

    Args:
        heads: The rows are those of so many heads.
    """

    heads: int

    def index(self, rows: int) -> Tensor:
        """Return the new order."""
        return torch.arange(rows).reshape(self.heads, 2, -1).transpose(1, 2).reshape(-1)


@dataclass(frozen=True)
class Part(RowMap):
    """One of the parts that a fused matrix holds one after the other, of each expert.

    Args:
        part: Which.
        parts: Of how many.
        experts: How many fused matrices there are.
    """

    part: int
    parts: int
    experts: int = 1

    def index(self, rows: int) -> Tensor:
        """Return the rows of the part."""
        return torch.arange(rows).reshape(self.experts, self.parts, -1)[:, self.part].reshape(-1)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file.

    Args:
        name: In the file.
        shape: As PyTorch has it, ``[..., out, in]``.
        sources: Names in the checkpoint, whose rows are laid one after the other.
        row_map: Which of these rows, in which order; ``None`` for all as they are.
        transposed: The sources are ``[in, out]`` (GPT-2's Conv1D): they are transposed before they are
            encoded.
        shift: Added to each number (gemma multiplies by 1 + w, llama.cpp by what the file holds); only of
            tensors that are stored as F32.
        values: The numbers of a tensor without sources, computed from the configuration.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[str, ...] = ()
    row_map: RowMap | None = None
    transposed: bool = False
    shift: float = 0.0
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.shift and not never_quantized(self.name, self.shape):
            raise ValueError(f"{self.name} may be encoded, so nothing can be added to it")

    def matrix(self, source: Tensor) -> Tensor:
        """Return a source's numbers as a matrix ``[rows, in]``, ready to be encoded.

        A vector is a matrix of one column: a row map permutes a bias as it does a weight.
        """
        if source.dim() == 1:
            return source[:, None]
        return source.t() if self.transposed else source.reshape(-1, source.shape[-1])

    def rows(self, parts: Sequence[Tensor]) -> Tensor:
        """Return this tensor's rows.

        Args:
            parts: A matrix a source, in the order of ``sources``: numbers as ``matrix`` gives them, or
                their encoded rows.
        """
        joined = parts[0] if len(parts) == 1 else torch.cat(tuple(parts))
        return joined if self.row_map is None else joined[self.row_map.index(len(joined))]

    def runs(self, read: Callable[[str], Tensor]) -> Iterator[Tensor]:
        """Return this tensor's rows in runs: a source after the other where no order spans them.

        Args:
            read: Gives the matrix of a source, as for ``rows``; called when its rows are needed.
        """
        if self.row_map is None:
            yield from map(read, self.sources)
        else:
            yield self.rows([read(name) for name in self.sources])

    def numbers(self, read: Callable[[str], Tensor]) -> Tensor:
        """Return this tensor's numbers, float32, in its shape.

        Args:
            read: Gives a tensor of the checkpoint.
        """
        if not self.sources:
            return torch.tensor(self.values, dtype=torch.float32).reshape(self.shape)
        parts = [self.matrix(read(name)) for name in self.sources]
        return self.rows(parts).float().add(self.shift).reshape(self.shape)


def never_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether llama.cpp leaves a tensor as it is: F32.

    Source:
        ``tensor_allows_quantization`` in llama.cpp's ``llama-quant.cpp``, for the architectures that are
        known here; ggml counts no axes of length 1 at the front.
    """
    axes = len(shape)
    while axes > 1 and shape[-axes] == 1:
        axes -= 1
    kept = ("_norm.weight", "ffn_gate_inp.weight")
    positions = ("position_embd.weight", "token_types.weight")
    return (
        axes < 2
        or not name.endswith("weight")
        or any(part in name for part in kept)
        or name in positions
    )
