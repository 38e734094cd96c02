"""``Budget``: what the user can afford, and what is to be best within it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qcompile.compiler.ir.errors import TargetError

Goal = Literal["quality", "size"]
_BITS = 16
_LEAST_SIZE = 1


@dataclass(frozen=True)
class Budget:
    """Limits of an artifact, each of them optional.

    Args:
        max_size: Bytes of the artifact.
        target_bpw: Bits of a weight, with all scales, on average over the file.
        max_kl: KL divergence from the original's predictions, nats per token.
        optimize: What is improved once all limits hold; ``quality`` unless ``max_kl`` is the only limit.
    """

    max_size: int | None = None
    target_bpw: float | None = None
    max_kl: float | None = None
    optimize: Goal | None = None

    def __bool__(self) -> bool:
        return any(v is not None for v in (self.max_size, self.target_bpw, self.max_kl))

    @property
    def goal(self) -> Goal:
        """What is improved."""
        only_kl = self.max_size is None and self.target_bpw is None
        return self.optimize or ("size" if only_kl else "quality")

    def check(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            TargetError: Names all of them.
        """
        wrong = []
        if self.max_size is not None and self.max_size < _LEAST_SIZE:
            wrong.append(f"--max-size {self.max_size} is no size")
        if self.target_bpw is not None and not 0 < self.target_bpw <= _BITS:
            wrong.append(f"--target-bpw {self.target_bpw:g} is not between 0 and {_BITS}")
        if self.max_kl is not None and self.max_kl <= 0:
            wrong.append(f"--max-kl {self.max_kl:g} is not above 0")
        if self.optimize is not None and not self:
            wrong.append(f"--optimize {self.optimize} has no limit to keep")
        if wrong:
            raise TargetError(f"{'; '.join(wrong)}: give --max-size, --target-bpw or --max-kl")


NO_BUDGET = Budget()
