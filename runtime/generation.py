"""Text from a language model, piece by piece."""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompile.runtime.chat import ChatTemplate, Messages
from qcompile.runtime.errors import InputError
from qcompile.runtime.llama.context import Context
from qcompile.runtime.llama.model import Model
from qcompile.runtime.sampling import Sampler
from qcompile.runtime.sessions.llama_cpp import Engine, open_engine

TEMPLATE = "tokenizer.chat_template"


@dataclass
class Statistics:
    """What a generation took.

    Args:
        prompt_tokens: Tokens that were read.
        prompt_seconds: Until they were.
        tokens: Tokens that were made, without the one that ended it.
        seconds: Until they were, from the end of the prompt.
        finish: ``stop`` (the model or a stop text ended it), ``length`` (enough tokens), ``context``
            (the context is full); empty until then.
    """

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    finish: str = ""

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second after the prompt."""
        return self.tokens / self.seconds if self.seconds else 0.0


class Generation(Iterator[str]):
    """Pieces of text as they are made; each is valid Unicode, and none is empty.

    Args:
        engine: Of the model.
        tokens: The prompt.
        sampler: Chooses.
        max_tokens: At most so many tokens are made.
        stop: Texts at which it ends; they are not part of it.
    """

    def __init__(
        self, engine: Engine, tokens: Sequence[int], sampler: Sampler, max_tokens: int,
        stop: Sequence[str] = (),
    ) -> None:  # fmt: skip
        if max_tokens < 1 or not all(stop):
            raise InputError(f"max_tokens {max_tokens} is below 1 or a stop text is empty")
        _check_prompt(tokens, engine.model)
        self.statistics = Statistics(prompt_tokens=len(tokens))
        self._stop = tuple(stop)
        self._pieces = self._text(self._tokens(engine, tokens, sampler, max_tokens), engine.model)

    def __next__(self) -> str:
        return next(self._pieces)

    def _text(self, tokens: Iterator[int], model: Model) -> Iterator[str]:
        """Decode bytes to characters, and hold back what may become a stop text."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        held = ""
        for token in tokens:
            held += decoder.decode(model.piece(token))
            found = [held.find(text) for text in self._stop if text in held]
            if found:
                self.statistics.finish = "stop"
                held = held[: min(found)]
                break
            ready = len(held) - _unfinished(held, self._stop)
            if ready:
                yield held[:ready]
                held = held[ready:]
        else:
            held += decoder.decode(b"", final=True)
        if held:
            yield held

    def _tokens(
        self, engine: Engine, prompt: Sequence[int], sampler: Sampler, max_tokens: int
    ) -> Iterator[int]:
        model, told = engine.model, self.statistics
        room = min(model.context, len(prompt) + max_tokens)
        context = Context(model, engine.options, room, threads=engine.threads)
        start = time.perf_counter()
        logits = context.decode(np.array([prompt]), 0, len(prompt) - 1)
        ready = time.perf_counter()
        told.prompt_seconds = ready - start
        for position in range(len(prompt), len(prompt) + max_tokens):
            token = sampler(logits[0, -1])
            told.seconds = time.perf_counter() - ready
            if model.ends(token):
                told.finish = "stop"
                return
            told.tokens += 1
            yield token
            if told.tokens == max_tokens or position >= room:
                break
            logits = context.decode(np.array([[token]]), position, position)
        told.finish = "length" if told.tokens == max_tokens else "context"


def generate(
    bundle: str | Path | Engine,
    prompt: str | Messages,
    *,
    chat: bool | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 40,
    top_p: float = 0.95,
    seed: int = 0,
    stop: Sequence[str] = (),
    threads: int = 1,
) -> Generation:
    """Continue a text, or answer it.

    Args:
        bundle: A bundle, a bare ``.gguf`` file, or an engine that is open.
        prompt: Text, or messages with ``role`` and ``content``.
        chat: Put a text through the model's chat template, as a user's message; by default if the
            model has one. Otherwise the model goes on where the text ends.
        max_tokens: At most so many tokens are made.
        temperature: See ``Sampler``, also for the next three; 0 is the likeliest token, always.
        top_k: Only so many tokens may be chosen.
        top_p: Only the likeliest tokens with this probability may be chosen.
        seed: The same one gives the same text.
        stop: Texts at which it ends, besides the model's own end.
        threads: Of the engine.

    Raises:
        InputError: A setting is wrong, the prompt is longer than the context, or the model has no
            template.
        BundleError: The bundle cannot be read or trusted, or is no language model.
    """
    sampler = Sampler(temperature, top_k, top_p, seed)
    engine = bundle if isinstance(bundle, Engine) else open_engine(Path(bundle), threads=threads)
    tokens = prompt_tokens(engine.model, prompt, chat=chat)
    return Generation(engine, tokens, sampler, max_tokens, stop)


def prompt_tokens(model: Model, prompt: str | Messages, *, chat: bool | None = None) -> list[int]:
    """Return the tokens of a prompt; words like ``<|...|>`` in it are the tokens that they name.

    Args:
        model: Whose.
        prompt: See ``generate``.
        chat: See ``generate``.

    Raises:
        InputError: It wants a template, and the model has none.
    """
    template = chat_template(model)
    conversation = not isinstance(prompt, str)
    if (chat or conversation) and template is None:
        raise InputError("the model has no chat template; give plain text (--raw)")
    if template is None or (chat is False and not conversation):
        assert isinstance(prompt, str)
        return model.tokenize(prompt, special=True)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = template.render(messages, answer=True)
    begin = not (template.beginning and text.startswith(template.beginning))
    return model.tokenize(text, special=True, begin=begin)


def chat_template(model: Model) -> ChatTemplate | None:
    """Return the model's template, if it has one."""
    source = model.metadata(TEMPLATE)
    if not source:
        return None
    return ChatTemplate(source, model.word("bos"), model.word("eos"))


def _check_prompt(tokens: Sequence[int], model: Model) -> None:
    if not tokens:
        raise InputError("the prompt has no tokens; give some text")
    if len(tokens) >= model.context:
        raise InputError(
            f"the prompt has {len(tokens)} tokens, and the model's context is {model.context}; give "
            f"at most {model.context - 1}, which leaves room for one that is made"
        )


def _unfinished(text: str, stop: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a stop text."""
    longest = max(map(len, stop), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(word.startswith(text[-size:]) for word in stop):
            return size
    return 0
