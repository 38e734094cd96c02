"""What is said of a graph before it is built, and of artifacts from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.blocks.format import BlockFormat


@dataclass(frozen=True)
class NodePlan:
    """What becomes of one node of the graph.

    Args:
        name: Of the node, or of its weight.
        op: Of the node.
        runs: The format it computes in, ``int8`` or ``fp32``, or ``fused`` and ``moved``.
        fast: Whether the device has instructions for it.
        why: One clause.
        bytes: Of its constants as stored.
        constants: Their names.
    """

    name: str
    op: str
    runs: str
    fast: bool
    why: str
    bytes: int = 0
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class TensorPlan:
    """What becomes of one tensor of a language model.

    Args:
        name: In the file.
        shape: As PyTorch has it, ``[..., out, in]``.
        format: That it is stored in.
        bytes: As stored.
        why: Why it is not stored as the precision has it, with what that costs; a sentence or nothing.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    bytes: int
    why: str = ""


@dataclass(frozen=True)
class TensorChoices:
    """Tensors of a language model that must have one format, and the formats that they may have.

    Args:
        tensors: Names in the file, each with its shape.
        sources: Names of the weights that they are made of.
        formats: That they may have.
        bytes: What they take in the file in each of these, padding included.
    """

    tensors: Mapping[str, tuple[int, ...]]
    sources: tuple[str, ...]
    formats: tuple[BlockFormat, ...]
    bytes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the first tensor."""
        return next(iter(self.tensors))


@dataclass(frozen=True)
class FilePlan:
    """The file that a language model becomes.

    Args:
        tensors: In file order.
        bytes: Of the whole file, exactly.
        notes: What is not as one might expect, a sentence each.
    """

    tensors: tuple[TensorPlan, ...]
    bytes: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitPlan:
    """Where one op would run: a prediction.

    Args:
        name: Of the op.
        op: Its type.
        units: The compute units that can take it.
        why: What keeps the others from it, if any.
    """

    name: str
    op: str
    units: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Probe:
    """An artifact that no manifest describes.

    Args:
        checks: What was looked at and found right, as label and text.
        inputs: Arrays that it can take, by name, made from a seed.
        run: Arrays in, outputs by name.
    """

    checks: tuple[tuple[str, str], ...]
    inputs: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Mapping[str, Any]]
