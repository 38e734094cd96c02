"""What a comparison of two tokenizers found."""

from __future__ import annotations

from dataclasses import dataclass

Side = tuple[int, ...] | str | int | None


@dataclass(frozen=True)
class Difference:
    """One input that the two tokenizers read differently.

    Args:
        kind: What was compared.
        text: The shortest input that shows it.
        source: What the source's tokenizer gives: ids, or text.
        gguf: What llama.cpp gives with the GGUF file.
    """

    kind: str
    text: str
    source: Side
    gguf: Side

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.text!r}: the source gives {_shown(self.source)}, "
            f"llama.cpp {_shown(self.gguf)}"
        )


@dataclass(frozen=True)
class Excused:
    """Differences that no GGUF file could avoid.

    Args:
        sentence: What llama.cpp does otherwise.
        count: How many of the cases show it.
        example: One of them.
    """

    sentence: str
    count: int
    example: Difference

    def __str__(self) -> str:
        return f"{self.sentence} ({self.count} cases; for example {self.example})"


@dataclass(frozen=True)
class TokenizerReport:
    """The result of comparing a GGUF file's tokenizer with its source.

    Args:
        cases: How many comparisons were made.
        differences: Errors in the file, each with its shortest input; a gate wants none.
        limits: What llama.cpp cannot do, where it showed.
        found: How many cases differed, of which ``differences`` holds the shortest.
    """

    cases: int
    differences: tuple[Difference, ...]
    limits: tuple[Excused, ...]
    found: int


def _shown(side: Side) -> str:
    if isinstance(side, tuple):
        return "[" + ", ".join(map(str, side)) + "]"
    return "none" if side is None else repr(side)
