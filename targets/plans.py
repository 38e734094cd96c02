"""What is said of a graph before it is built, and of artifacts from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qcompile.compiler.ir.blocks.format import BlockFormat
from qcompile.compiler.ir.quant import WeightFormat


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
    """Tensors that must have one format, and the formats that they may have.

    Args:
        tensors: Names, those in a language model's file or those of weights; each with its shape.
        sources: Names of the weights that they are made of.
        formats: That they may have; of a language model ggml's blocks.
        bytes: What they take in the artifact in each of these, padding included.
        float_bytes: What they take as floats; of language models it is not asked for.
    """

    tensors: Mapping[str, tuple[int, ...]]
    sources: tuple[str, ...]
    formats: tuple[BlockFormat | WeightFormat, ...]
    bytes: tuple[int, ...]
    float_bytes: int = 0

    @property
    def name(self) -> str:
        """The name of the first tensor."""
        return next(iter(self.tensors))


@dataclass(frozen=True)
class EngineMemory:
    """Bytes that an engine holds besides a language model's file, at most.

    Args:
        cache: Keys and values of a whole context.
        compute: Activations and what operators work in.
        process: The engine itself, vocabulary included, on this machine.
    """

    cache: int
    compute: int
    process: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.cache + self.compute + self.process


@dataclass(frozen=True)
class TokenTimes:
    """Milliseconds that a token of a language model takes, or a call of another one.

    Args:
        of: What each format of each tensor adds, by the tensors' first name and the format's.
        rest: What no format changes.
        modelled: Whether they are computed from facts about the device, and not measured on it.
    """

    of: Mapping[str, Mapping[str, float]]
    rest: float
    modelled: bool


@dataclass(frozen=True)
class FilePlan:
    """The file that a language model becomes.

    Args:
        tensors: In file order.
        bytes: Of the whole file, exactly.
        token_bytes: Of weights that a token reads.
        notes: What is not as one might expect, a sentence each.
    """

    tensors: tuple[TensorPlan, ...]
    bytes: int
    token_bytes: int
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
