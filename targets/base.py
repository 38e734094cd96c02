"""What an emitter is: the code for one artifact format. A module ``targets/NAME/emitter.py`` holds one."""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import qcompile.targets
from qcompile.compiler.ir.errors import TargetError
from qcompile.compiler.ir.graph import Graph
from qcompile.compiler.ir.quant import QuantSpec
from qcompile.passes.base import Pass
from qcompile.passes.calibration.samples import Samples
from qcompile.passes.quantization.records import QuantizationLog
from qcompile.targets.device import Device


@dataclass(frozen=True)
class Scheme:
    """Number formats for one precision on one device.

    Args:
        precision: As the user names it.
        weight: Of the weights of layers; ``None`` for float.
        activation: Of activations; ``None`` for float.
        float_bits: Of all that stays float.
    """

    precision: str
    weight: QuantSpec | None
    activation: QuantSpec | None
    float_bits: int = 32

    @property
    def needs_calibration(self) -> bool:
        """Whether anything is chosen from data."""
        return self.weight is not None


@dataclass(frozen=True)
class Recipe:
    """What the passes of an emitter are given.

    Args:
        scheme: The formats.
        samples: Calibration data, if the scheme needs any.
        log: Filled in by quantization.
        rounding: See ``Quantize``.
        keep_float: Weights whose layers stay float.
        max_bytes: Activations in memory.
        on_progress: Told the share of calibration that is done.
    """

    scheme: Scheme
    samples: Samples | None
    log: QuantizationLog
    rounding: str = "gptq"
    keep_float: frozenset[str] = frozenset()
    max_bytes: int = 1 << 30
    on_progress: Any = field(default=lambda share: None)


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
class Emitted:
    """What ``emit`` wrote.

    Args:
        artifact: The file that the engine loads, relative to the folder.
        files: All files, relative.
        engine: For the manifest: ``name``, ``minimum``, ``options``.
        floats: What stays float in the engine: ``op``, ``count``, ``why``.
        tools: Versions of the packages used.
    """

    artifact: str
    files: tuple[str, ...]
    engine: Mapping[str, Any]
    floats: tuple[Mapping[str, Any], ...]
    tools: Mapping[str, str]


class Emitter(ABC):
    """Writes one format."""

    name: ClassVar[str]
    description: ClassVar[str]

    @abstractmethod
    def precisions(self, device: Device) -> Sequence[str]:
        """Return what this format can store for a device."""

    @abstractmethod
    def scheme(self, precision: str, device: Device, *, per_tensor: bool) -> Scheme:
        """Return the formats of a precision; called only with one of ``precisions``."""

    @abstractmethod
    def check(self, graph: Graph) -> None:
        """Raise ``UnsupportedError`` with all that cannot be stored, before any costly work."""

    @abstractmethod
    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        """Return what would become of every node; the graph, the caller's own copy, may be rewritten."""

    @abstractmethod
    def passes(self, recipe: Recipe) -> list[Pass]:
        """Return the passes that turn the float graph into what is stored, in order."""

    @abstractmethod
    def emit(self, graph: Graph, folder: Path) -> Emitted:
        """Write the artifact."""

    @abstractmethod
    def engine_errors(
        self, graph: Graph, folder: Path, emitted: Emitted, inputs: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """Run the artifact in its engine and compare each stored value with the quantized graph.

        The graph goes on from the engine's own values, so that each op is judged alone.

        Args:
            graph: The quantized graph.
            folder: Where ``emit`` wrote.
            emitted: What it returned.
            inputs: numpy arrays by name.

        Returns:
            A row a value: ``name``, ``values``, ``differing``, ``largest``, ``sqnr_db``.
        """


def emitter_names() -> list[str]:
    """Return the names of all emitters, sorted."""
    root = Path(qcompile.targets.__file__).parent
    return sorted(
        m.name for m in pkgutil.iter_modules([str(root)]) if m.ispkg and m.name != "devices"
    )


def find_emitter(name: str) -> Emitter:
    """Return the emitter of a name.

    Raises:
        TargetError: There is none; lists those that there are.
    """
    if name not in emitter_names():
        raise TargetError(f"no format {name!r}; there are: {', '.join(emitter_names())}")
    emitter: Emitter = importlib.import_module(f"qcompile.targets.{name}.emitter").EMITTER
    return emitter
