"""``BlockFormat``: what all of ggml's formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

DONE_AT_ONCE = 1 << 19
"""Elements that are encoded or decoded together: the working set stays in the last cache before memory."""

LARGEST = 2.0**32
"""Above what any format with float16 scales can store; squares of what is below are finite."""


@dataclass(frozen=True)
class Fields:
    """What the bytes of blocks mean; what a format does not have is ``None``.

    Args:
        codes: As stored: uint8 (int8 for Q8_0) ``[blocks, block]``; the numbers themselves of float
            formats; int16 grid indices ``[blocks, block / 8]`` or ``/ 4`` of lattice formats.
        d: float16 ``[blocks]``: the block's scale, or the unit of ``scales``.
        dmin: float16 ``[blocks]``: the block's offset (Q4_1, Q5_1), or the unit of ``mins``.
        scales: Integer ``[blocks, block / run]``, one a sub-block; signed where the format's are.
        mins: uint8, the shape of ``scales``: how far a sub-block's values are shifted down.
        signs: uint8 ``[blocks, block / 8]``: bit j set where element j of 8 is negative.
    """

    codes: Tensor
    d: Tensor | None = None
    dmin: Tensor | None = None
    scales: Tensor | None = None
    mins: Tensor | None = None
    signs: Tensor | None = None


def present(field: Tensor | None) -> Tensor:
    """Return a field that the format at hand has."""
    assert field is not None
    return field


@dataclass(frozen=True)
class BlockFormat(ABC):
    """One format of ggml: rows are cut into blocks, and each block is so many bytes.

    Args:
        name: As ggml spells it, ``Q4_K``.
        type_id: Its number in a GGUF file.
        block: Elements of a block.
        layout: Name and size of each part of a block's bytes, in file order.
    """

    name: str
    type_id: int
    block: int
    layout: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return self.name

    @property
    def size(self) -> int:
        """Bytes of a block."""
        return sum(size for _, size in self.layout)

    def storage_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of this shape, whose last axis is cut into blocks."""
        self.check_width(shape[-1])
        return int(torch.Size(shape).numel()) // self.block * self.size

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Return the bits of an element, scales included; the same for every shape."""
        return 8 * self.size / self.block

    def check_width(self, width: int) -> None:
        """Refuse rows that blocks do not fill.

        Raises:
            ValueError: The width is no multiple of the block; names the format that can store it.
        """
        if width % self.block:
            raise ValueError(
                f"{self.name} stores rows in blocks of {self.block}, and a row of {width} elements is "
                f"no multiple of it: use {fallback(self.name, width)}, which can store it"
            )

    def decode(self, data: Tensor) -> Tensor:
        """Return what bytes decode to.

        Args:
            data: uint8 ``[rows, bytes]``.

        Returns:
            float32 ``[rows, bytes / size * block]``, bit for bit what ggml computes.

        Raises:
            ValueError: Bytes that are no whole blocks.
        """
        self._check_bytes(data)
        blocks = data.reshape(-1, self.size)
        values = torch.empty(len(blocks), self.block)
        at_once = max(1, DONE_AT_ONCE // self.block)
        for start in range(0, len(blocks), at_once):
            part = slice(start, start + at_once)
            values[part] = self.values(self.unpack(blocks[part]))
        return values.reshape(len(data), data.shape[1] // self.size * self.block)

    def unpack(self, data: Tensor) -> Fields:
        """Return the fields of bytes ``[rows, bytes]``, block after block.

        Raises:
            ValueError: Bytes that are no whole blocks.
        """
        self._check_bytes(data)
        blocks = data.reshape(-1, self.size)
        names, sizes = zip(*self.layout, strict=True)
        return self.read(dict(zip(names, blocks.split(sizes, 1), strict=True)))

    def _check_bytes(self, data: Tensor) -> None:
        if data.dtype != torch.uint8 or data.dim() != 2 or data.shape[1] % self.size:
            raise ValueError(
                f"{self.name} has blocks of {self.size} bytes, and {data.dtype} {list(data.shape)} holds "
                "no whole number of them in a row: give uint8 [rows, bytes]"
            )

    def pack(self, fields: Fields) -> Tensor:
        """Return the bytes of fields: uint8 ``[blocks, size]``, the inverse of ``unpack``."""
        parts = self.write(fields)
        return torch.cat([parts[name] for name, _ in self.layout], 1)

    def encode(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the bytes whose values are near ``x``.

        Args:
            x: ``[rows, in]``, finite.
            weights: How much each input matters, not negative: ``[in]``, or of the shape of ``x``; an
                imatrix. ``None`` for ggml's own weighting by magnitude.

        Returns:
            uint8 ``[rows, in / block * size]``.

        Raises:
            ValueError: A width that blocks do not fill, or values that cannot be stored.
        """
        if x.dim() != 2:
            raise ValueError(
                f"{self.name} encodes rows [rows, in], not {list(x.shape)}: reshape it"
            )
        self.check_width(x.shape[1])
        check_finite(x, "values")
        rows, importance = x.detach().float(), None
        if weights is not None:
            importance = self.importance(rows, _weights_of(rows, weights)).reshape(-1, self.block)
        packed = self._encode_blocks(rows.reshape(-1, self.block), importance)
        return packed.reshape(len(x), x.shape[1] // self.block * self.size)

    def _encode_blocks(self, blocks: Tensor, importance: Tensor | None) -> Tensor:
        at_once = max(1, DONE_AT_ONCE // self.block)
        packed = torch.empty(len(blocks), self.size, dtype=torch.uint8)
        for start in range(0, len(blocks), at_once):
            part = slice(start, start + at_once)
            fields = self.fit(blocks[part], None if importance is None else importance[part])
            if fields.d is not None:
                self.check_storable(blocks[part], fields)
            packed[part] = self.pack(fields)
        return packed

    def check_storable(self, x: Tensor, fields: Fields | None = None) -> None:
        """Refuse values that need a larger scale than float16 has, before or after they are encoded.

        Args:
            x: The values.
            fields: What they were encoded to; its scales must be finite.

        Raises:
            ValueError: See above.
        """
        units = () if fields is None else (fields.d, fields.dmin)
        finite = all(unit is None or bool(unit.isfinite().all()) for unit in units)
        if not finite or (x.numel() and x.abs().max() > LARGEST):
            raise ValueError(
                f"values up to {x.abs().max():g} need a scale that is too large for {self.name}, "
                "whose scales are float16 numbers: use F32 or BF16"
            )

    def importance(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of each squared error in ``fit``; both are ``[rows, in]``."""
        return weights

    @abstractmethod
    def read(self, parts: Mapping[str, Tensor]) -> Fields:
        """Return the fields in the parts of ``layout``, each uint8 ``[blocks, size]``."""

    @abstractmethod
    def write(self, fields: Fields) -> dict[str, Tensor]:
        """Return the parts of ``layout``."""

    @abstractmethod
    def values(self, fields: Fields) -> Tensor:
        """Return what fields decode to: float32 ``[blocks, block]``."""

    @abstractmethod
    def fit(self, x: Tensor, importance: Tensor | None) -> Fields:
        """Return fields whose values are near ``x``; all ``[blocks, block]``."""


def fallback(name: str, width: int) -> str:
    """Return the name of the format that ggml takes for rows of this width: ``name`` if it fits.

    Source:
        FORMATS A.1.4 (llama-quant.cpp, ``tensor_type_fallback``).
    """
    if width % 256 == 0 or (width % 32 == 0 and name in BLOCKS_OF_32) or name in FLOATS:
        return name
    if width % 32:
        return "F16"
    if name.startswith("IQ"):
        return "IQ4_NL"
    return {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}.get(name, "Q4_0")


FLOATS = ("F32", "F16", "BF16")
BLOCKS_OF_32 = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL")


def _weights_of(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each element of ``rows``."""
    if weights.shape not in (rows.shape, rows.shape[1:]):
        raise ValueError(
            f"weights {list(weights.shape)} do not fit values {list(rows.shape)}: give one an input, "
            f"[{rows.shape[1]}], or one an element"
        )
    check_finite(weights, "weights")
    return weights.float().expand_as(rows)


def check_finite(x: Tensor, what: str) -> None:
    """Refuse values that are no numbers, and weights that are negative.

    Args:
        x: What is checked.
        what: ``values`` or ``weights``.

    Raises:
        ValueError: Says how many there are and where the first is.
    """
    least = 0.0 if what == "weights" else -torch.inf
    low, high = torch.aminmax(x) if x.numel() else (torch.zeros(()), torch.zeros(()))
    if low.isfinite() and high.isfinite() and low >= least:
        return
    bad = ~x.isfinite() | (x < least)
    first = tuple(int(i) for i in bad.nonzero()[0])
    rule = "finite and not negative" if what == "weights" else "finite"
    raise ValueError(
        f"{int(bad.sum())} of {x.numel()} {what} are not {rule}, the first {x[first]:g} at "
        f"{list(first)}: only finite numbers can be encoded, so repair or leave out the tensor"
    )
