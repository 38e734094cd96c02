"""What an emitter is: the code for one artifact format. A module ``targets/NAME/emitter.py`` holds one."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import TargetError, UnsupportedError
from qcompile.compiler.ir.graph import Graph
from qcompile.passes.base import Pass
from qcompile.passes.pipelines import float_pipeline
from qcompile.runtime.manifest import TensorInfo
from qcompile.runtime.session import Engine
from qcompile.targets import signature
from qcompile.targets.device import Device
from qcompile.targets.formats import emitter_names
from qcompile.targets.options import (
    DEFAULT_WEIGHTS,
    NO_TUNING,
    BlockOptions,
    Tuning,
    WeightOptions,
)
from qcompile.targets.order import Emitted, Order, Recipe, Scheme
from qcompile.targets.plans import (
    FilePlan,
    NodePlan,
    Probe,
    TensorChoices,
    UnitPlan,
)
from qcompile.targets.running_costs import RunningCosts


class Emitter(RunningCosts, ABC):
    """Writes one format."""

    name: ClassVar[str]
    description: ClassVar[str]
    bare_device: ClassVar[str] = "host"
    """For whom it emits if the user names the format as the target."""
    has_objects: ClassVar[bool] = False
    """Whether an artifact is linked from objects that a user may want."""
    has_kernels: ClassVar[bool] = False
    """Whether an artifact's bytes depend on which weights share a format, for code is in it."""
    decodes_weights: ClassVar[bool] = False
    """Whether a layer may compute in float with its weight in codes beside layers in integers."""
    takes_checkpoints: ClassVar[bool] = False
    """Whether it stores language models, from their directories, and nothing else."""

    def precisions(self, device: Device) -> Sequence[str]:
        """Return what this format can store for a device."""
        return tuple(device.facts(self.name))

    def default_precision(self, device: Device) -> str:
        """Return what a device has if the user names nothing."""
        return device.default_precision(self.name)

    def check_checkpoint(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions
    ) -> None:
        """Raise for a language model that cannot be stored, before any costly work.

        Raises:
            UnsupportedError: Always, unless the format says otherwise.
        """
        raise UnsupportedError(
            f"{self.name} has no form for a language model's directory: use --format gguf"
        )

    def plan_checkpoint(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        keep_float: frozenset[str] = frozenset(),
    ) -> FilePlan:
        """Return what a language model's file would hold.

        Raises:
            UnsupportedError: Always, unless the format says otherwise.
        """
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def tensor_choices(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return the formats that each tensor of a language model's file may have.

        Raises:
            UnsupportedError: Always, unless the format says otherwise.
        """
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def precision_of(self, bits_per_weight: float) -> str:
        """Return the precision that a language model's file with so many bits says it has.

        Raises:
            UnsupportedError: Always, unless the format says otherwise.
        """
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def mixed_scheme(self, device: Device) -> Scheme:
        """Return the scheme of a plan, in which each weight has a format of its own.

        Raises:
            TargetError: Always, unless the format says otherwise.
        """
        raise self._one_precision()

    def weight_choices(
        self,
        graph: Graph,
        device: Device,
        pins: Sequence[tuple[str, str]] = (),
        keep_float: frozenset[str] = frozenset(),
    ) -> Sequence[TensorChoices]:
        """Return the formats that each weight of a float graph may have.

        Args:
            graph: After ``float_passes``.
            device: Whose engine and system decide.
            pins: Regular expressions of weights' names, each with the name of a format.
            keep_float: Weights that have no other format than float.

        Raises:
            TargetError: A pin names no format that its weight can have; always, where ``mixed_scheme`` does.
        """
        raise self._one_precision()

    def _one_precision(self) -> TargetError:
        return TargetError(
            f"{self.name} stores all weights in one precision: budgets and plans are for coreml, gguf, onnx "
            "and tvm"
        )

    @abstractmethod
    def scheme(
        self, precision: str, device: Device, options: WeightOptions = DEFAULT_WEIGHTS
    ) -> Scheme:
        """Return the formats of a precision; called only with one of ``precisions``.

        Raises:
            TargetError: The options do not fit the precision, or the device's system is too old for it.
        """

    def check_machine(self, device: Device) -> None:
        """Raise where this machine lacks what ``emit`` and ``engine_errors`` need, before any costly work.

        Raises:
            TargetError: A tool is missing; names all of them.
        """

    def check_tuning(self, tuning: Tuning, device: Device) -> None:
        """Raise for tuning that the format has not got, or that cannot be done here.

        Raises:
            TargetError: Always, if anything is asked for, unless the format says otherwise.
        """
        if tuning != NO_TUNING:
            raise TargetError(
                f"{self.name} has nothing to tune: leave out --tune and --tune-database, or use --format tvm"
            )

    def preload(self) -> None:
        """Import and make what emitting takes, so that processes forked from this one have it at once."""

    @abstractmethod
    def check(self, graph: Graph, device: Device) -> None:
        """Raise ``UnsupportedError`` with all that cannot be stored, before any costly work."""

    @abstractmethod
    def plan(self, graph: Graph, scheme: Scheme, device: Device) -> list[NodePlan]:
        """Return what would become of every node; the graph, the caller's own copy, may be rewritten."""

    def float_passes(self) -> list[Pass]:
        """Return the passes before those of the format, which leave the function as it is."""
        return float_pipeline()

    @abstractmethod
    def passes(self, recipe: Recipe) -> list[Pass]:
        """Return the passes that turn the float graph into what is stored, in order."""

    @abstractmethod
    def emit(self, graph: Graph, folder: Path, order: Order) -> Emitted:
        """Write the artifact."""

    def artifact_bytes(self, graph: Graph, order: Order) -> int:
        """Return the bytes of the artifact alone: it is written, and looked at."""
        with TemporaryDirectory(prefix="qcompile-") as name:
            artifact = Path(name) / self.emit(graph, Path(name), order).artifact
            files = artifact.rglob("*") if artifact.is_dir() else [artifact]
            return sum(file.stat().st_size for file in files if file.is_file())

    def companions(self, graph: Graph, folder: Path, order: Order, vectors_limit_db: float) -> None:
        """Write what an app needs beside the artifact; called when the artifact is verified.

        Args:
            graph: The quantized graph.
            folder: The bundle.
            order: As for ``emit``.
            vectors_limit_db: What another machine must reach on the bundle's vectors.
        """

    def inspect(self, artifact: Path, device: Device) -> tuple[list[UnitPlan], list[str]]:
        """Return where each op of an artifact would run, with a summary in sentences.

        Nothing unless the format leaves the choice to the device.
        """
        return [], []

    def probe(self, artifact: Path) -> Probe | None:
        """Read an artifact without a bundle and make ready to run it.

        Returns:
            ``None`` for what is no artifact of this format, or cannot be verified without a bundle.

        Raises:
            QCompileError: It is damaged, or cannot be run here.
        """
        return None

    def inputs(self, graph: Graph) -> tuple[TensorInfo, ...]:
        """Return the artifact's inputs; the graph's own unless the format has other names or dtypes."""
        return signature.inputs(graph)

    def outputs(self, graph: Graph) -> tuple[TensorInfo, ...]:
        """Return the artifact's outputs."""
        return signature.outputs(graph)

    def to_engine(self, graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return the graph's inputs as arrays for the artifact."""
        return {name: np.ascontiguousarray(value.numpy()) for name, value in inputs.items()}

    def from_engine(self, graph: Graph, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the artifact's inputs as the graph takes them: exactly what ``arrays`` mean."""
        return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}

    def engine_class(self) -> type[Engine] | None:
        """Return what stands in for the engine on this machine; ``None`` for the runtime's own."""
        return None

    def proof(self, device: Device) -> Mapping[str, str]:
        """Return by what the artifact is verified on this machine, and what that does not show."""
        return {"engine": self.name}

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
            A row a value: ``name``, ``values``, ``differing``, ``largest``, ``sqnr_db``; for a weight
            also ``exact``: not one value may differ.
        """


def find_emitter(name: str) -> Emitter:
    """Return the emitter of a name.

    Raises:
        TargetError: There is none; lists those that there are.
    """
    if name not in emitter_names():
        raise TargetError(f"no format {name!r}; there are: {', '.join(emitter_names())}")
    emitter: Emitter = importlib.import_module(f"qcompile.targets.{name}.emitter").EMITTER
    return emitter
