"""``Budget``: what the user can afford, and what is to be best within it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qcompile.compiler.ir.errors import TargetError

Goal = Literal["quality", "size", "latency"]
OPTIONS = "--max-size, --target-bpw, --max-ram, --max-latency or --max-kl"
_BITS = 16
_LEAST_SIZE = 1


@dataclass(frozen=True)
class Budget:
    """Limits of an artifact, each of them optional.

    Args:
        max_size: Bytes of the artifact.
        target_bpw: Bits of a weight, with all scales, on average over the file.
        max_ram: Bytes of a process that runs it: weights, what it remembers of ``context`` tokens,
            activations, engine.
        max_latency: Milliseconds a token.
        max_kl: KL divergence from the original's predictions, nats per token.
        optimize: What is improved once all limits hold; ``quality`` unless ``max_kl`` is the only limit.
        context: Tokens that ``max_ram`` has room for; by default what the model takes.
    """

    max_size: int | None = None
    target_bpw: float | None = None
    max_ram: int | None = None
    max_latency: float | None = None
    max_kl: float | None = None
    optimize: Goal | None = None
    context: int | None = None

    def __bool__(self) -> bool:
        return self.max_kl is not None or self._of_costs

    @property
    def goal(self) -> Goal:
        """What is improved."""
        return self.optimize or ("quality" if self._of_costs else "size")

    @property
    def needs_times(self) -> bool:
        """Whether the time of a token must be known."""
        return self.max_latency is not None or self.optimize == "latency"

    def check(self, gated: bool = False) -> None:
        """Refuse limits that mean nothing.

        Args:
            gated: Whether there are limits of quality besides, ``--min-sqnr`` or ``--max-drop``.

        Raises:
            TargetError: Names all of them.
        """
        wrong = []
        if self.max_size is not None and self.max_size < _LEAST_SIZE:
            wrong.append(f"--max-size {self.max_size} is no size")
        if self.target_bpw is not None and not 0 < self.target_bpw <= _BITS:
            wrong.append(f"--target-bpw {self.target_bpw:g} is not between 0 and {_BITS}")
        if self.max_ram is not None and self.max_ram < _LEAST_SIZE:
            wrong.append(f"--max-ram {self.max_ram} is no size")
        if self.context is not None and self.max_ram is None:
            wrong.append(
                f"--context {self.context} says what --max-ram has room for, and there is none"
            )
        for option, value in (("--max-latency", self.max_latency), ("--max-kl", self.max_kl)):
            if value is not None and value <= 0:
                wrong.append(f"{option} {value:g} is not above 0")
        if self.optimize is not None and not self and not (gated and self.goal == "size"):
            wrong.append(f"--optimize {self.optimize} has no limit to keep")
        if wrong:
            raise TargetError(f"{'; '.join(wrong)}: give {OPTIONS}")

    @property
    def _of_costs(self) -> bool:
        """Whether there is a limit that quality can be bought with."""
        limits = (self.max_size, self.target_bpw, self.max_ram, self.max_latency)
        return any(limit is not None for limit in limits)


NO_BUDGET = Budget()
