"""Comparisons of token ids over many texts, with limits told from errors and inputs made short."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from qcompile.targets.gguf.tokenizer.engine import Vocabulary
from qcompile.targets.gguf.tokenizer.limits import EngineLimit, all_changes
from qcompile.targets.gguf.tokenizer.reference import Reference
from qcompile.targets.gguf.tokenizer.report import Difference, Excused, TokenizerReport
from qcompile.targets.gguf.tokenizer.shrink import shrink

MOST_SHOWN = 5  # of one kind
NO_TOKEN = "the vocabulary has no token for some bytes, and llama.cpp joins nothing across one that it drops"


@dataclass(frozen=True)
class Mode:
    """One way to ask for token ids.

    Args:
        kind: How a report calls it.
        add_special: Are the ids that begin and end a text added.
        parse_special: Are special tokens found in the text.
        in_chats: Are the texts rendered chats.
    """

    kind: str
    add_special: bool
    parse_special: bool
    in_chats: bool = False


PLAIN = Mode("ids of", add_special=False, parse_special=True)
AS_TEXT = Mode("ids without special tokens of", add_special=False, parse_special=False)
WHOLE = Mode("ids with what is added of", add_special=True, parse_special=True)
CHAT = Mode("ids of the chat", add_special=False, parse_special=True, in_chats=True)


@dataclass
class Comparison:
    """The two tokenizers, and what was found so far.

    Args:
        tokenizer: ``tokenizer.json`` of the source.
        limits: What llama.cpp cannot do.
        engine: The GGUF file in llama.cpp.
        around: The ids that the source puts before and after a text.
        unwritable: Bytes without a token.
    """

    tokenizer: dict[str, object]
    limits: Sequence[EngineLimit]
    engine: Vocabulary
    around: tuple[list[int], list[int]]
    unwritable: frozenset[int] = frozenset()
    cases: int = 0
    found: int = 0
    differences: list[Difference] = field(default_factory=list)
    excused: dict[str, list[Difference]] = field(default_factory=dict)

    @functools.cached_property
    def reference(self) -> Reference:
        """The source's tokenizer."""
        return Reference(self.tokenizer)

    def report(self) -> TokenizerReport:
        """Return what was found."""
        limits = [Excused(name, len(all_), _least(all_)) for name, all_ in self.excused.items()]
        return TokenizerReport(self.cases, tuple(self.differences), tuple(limits), self.found)

    def equal(self, kind: str, text: str, source: object, gguf: object) -> None:
        """Compare one value."""
        self.cases += 1
        if source != gguf:
            self.add([Difference(kind, text, _side(source), _side(gguf))])

    def add(self, found: Sequence[Difference]) -> None:
        """Keep the shortest of the differences of one kind."""
        self.found += len(found)
        kept = sorted(set(found), key=lambda one: (len(one.text), one.text))
        self.differences += kept[:MOST_SHOWN]

    def with_all_limits(self) -> Reference:
        """Return the source's tokenizer with all that llama.cpp does otherwise."""
        return self._with(tuple(self.limits)) if self.limits else self.reference

    def excuse(self, sentence: str, difference: Difference) -> None:
        """Keep a difference that the file cannot help."""
        self.excused.setdefault(sentence, []).append(difference)

    def texts(self, mode: Mode, texts: Sequence[str]) -> None:
        """Compare the ids of texts."""
        self.cases += len(texts)
        wanted = self._wanted(self.reference, mode, texts)
        pairs = zip(texts, wanted, strict=True)
        wrong = [text for text, ids in pairs if ids != self._given(mode, text)]
        wrong = self._excuse_all(mode, wrong)
        self.found += max(len(wrong) - MOST_SHOWN, 0)
        shortest = sorted(wrong, key=lambda text: (len(text), text))[:MOST_SHOWN]
        self.add([self._shrunk(mode, text) for text in shortest])

    def _wanted(self, reference: Reference, mode: Mode, texts: Sequence[str]) -> list[list[int]]:
        before, after = self.around if mode.add_special else ([], [])
        found = reference.encode_all(texts, parse_special=mode.parse_special)
        return [before + ids + after for ids in found]

    def _given(self, mode: Mode, text: str) -> list[int]:
        return self.engine.encode(
            text, add_special=mode.add_special, parse_special=mode.parse_special
        )

    def _excuse_all(self, mode: Mode, wrong: Sequence[str]) -> list[str]:
        """Return the texts whose differences no limit explains; note those that one does."""
        errors = []
        for text in wrong:
            reason = self._reason(mode, text)
            if reason is None:
                errors.append(text)
            else:
                self.excuse(reason, self._difference(mode, text))
        return errors

    def _reason(self, mode: Mode, text: str) -> str | None:
        """Return the fewest limits with which the source gives what llama.cpp gives."""
        if not self.unwritable.isdisjoint(text.encode()):
            return NO_TOKEN
        limits = [limit for limit in self.limits if limit.in_chats or not mode.in_chats]
        shown = next((one for one in limits if one.shows and one.shows.search(text)), None)
        if shown is not None:
            return shown.sentence
        for count in range(1, len(limits) + 1):
            for chosen in itertools.combinations(limits, count):
                if self._same(self._with(chosen), mode, text):
                    return "; ".join(limit.sentence for limit in chosen)
        return None

    def _with(self, limits: tuple[EngineLimit, ...]) -> Reference:
        if limits not in self._changed:
            self._changed[limits] = Reference(all_changes(list(limits), self.tokenizer))
        return self._changed[limits]

    @functools.cached_property
    def _changed(self) -> dict[tuple[EngineLimit, ...], Reference]:
        return {}

    def _same(self, reference: Reference, mode: Mode, text: str) -> bool:
        return self._wanted(reference, mode, [text])[0] == self._given(mode, text)

    def _shrunk(self, mode: Mode, text: str) -> Difference:
        def fails(shorter: str) -> bool:
            same = self._same(self.reference, mode, shorter)
            return not same and self._reason(mode, shorter) is None

        return self._difference(mode, shrink(text, fails))

    def _difference(self, mode: Mode, text: str) -> Difference:
        wanted = self._wanted(self.reference, mode, [text])[0]
        return Difference(mode.kind, text, tuple(wanted), tuple(self._given(mode, text)))


def _least(found: Sequence[Difference]) -> Difference:
    return min(found, key=lambda one: (len(one.text), one.text))


def _side(value: object) -> tuple[int, ...] | str | int | None:
    if isinstance(value, list | tuple):
        return tuple(value)
    return value if isinstance(value, str | int) or value is None else str(value)
