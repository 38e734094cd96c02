"""What a model takes while it runs, as its engine says: memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from qcompile.compiler.ir.checkpoint import Checkpoint
from qcompile.compiler.ir.errors import UnsupportedError
from qcompile.targets.device import Device
from qcompile.targets.options import BlockOptions
from qcompile.targets.order import Scheme
from qcompile.targets.plans import EngineMemory, TensorChoices, TokenTimes


class RunningCosts:
    """The part of an emitter that knows it; a format that holds no language models leaves it as it is."""

    name: ClassVar[str]
    neural_engine: ClassVar[bool] = False
    """Whether artifacts run on a Neural Engine."""

    def runs_here(self, device: Device) -> bool:
        """Return whether an artifact for a device runs in its engine on this machine, to be measured."""
        return False

    def engine_memory(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions, context: int
    ) -> EngineMemory:
        """Return what the engine holds besides the file when its context is full.

        Raises:
            BundleError: The engine does not say it.
            UnsupportedError: The format holds no language models.
        """
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def token_times(
        self,
        checkpoint: Checkpoint,
        scheme: Scheme,
        blocks: BlockOptions,
        choices: Sequence[TensorChoices],
        device: Device,
    ) -> TokenTimes:
        """Return what each choice adds to the time of a token: measured here, or from facts about the device.

        Raises:
            TargetError: It can be neither measured nor modelled.
            UnsupportedError: The format holds no language models.
        """
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def planned_milliseconds(
        self, checkpoint: Checkpoint, scheme: Scheme, blocks: BlockOptions
    ) -> float:
        """Return the median time of a token on this machine with formats that no weight has yet."""
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def measured_memory(self, artifact: Path, blocks: BlockOptions, context: int) -> int:
        """Return the most memory that a process holds that reads a whole context with an artifact."""
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")

    def measured_milliseconds(self, artifact: Path, blocks: BlockOptions) -> float:
        """Return the median time of a token with an artifact on this machine."""
        raise UnsupportedError(f"{self.name} has no form for a language model's directory")
