"""Chat templates: messages -> the text that the model was trained to see.

The environment is that of transformers (``utils/chat_template_utils.py``): Jinja in its sandbox, with
``raise_exception``, ``strftime_now``, ``tojson`` without escapes, loop controls, and
``{% generation %}`` blocks, whose content is plain text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qcompile.runtime.errors import InputError, MissingPackageError

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template.

    Args:
        source: Jinja.
        beginning: Text of the token that begins a text, which templates may name.
        ending: Text of the token that ends one.
    """

    source: str
    beginning: str = ""
    ending: str = ""

    def render(self, messages: Messages, *, answer: bool, now: datetime | None = None) -> str:
        """Return the text.

        Args:
            messages: Each with ``role`` and ``content``.
            answer: End where the model's answer begins.
            now: What the template takes for the present; the clock's by default.

        Raises:
            InputError: The template is none, or refuses the messages.
            MissingPackageError: jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError as error:
            raise MissingPackageError("jinja2", "gguf") from error
        check(messages)
        try:
            template = _environment(now).from_string(self.source)
            return str(
                template.render(
                    messages=messages,
                    add_generation_prompt=answer,
                    bos_token=self.beginning,
                    eos_token=self.ending,
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"the model's chat template refuses the messages: {error}") from error


def check(messages: Any) -> None:
    """Refuse what is no conversation.

    Raises:
        InputError: Says which message is wrong.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError("messages must be a list with a message at least")
    for number, message in enumerate(messages, 1):
        wrong = not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if wrong:
            raise InputError(f"message {number} has no role or no content that is text")


def _environment(now: datetime | None) -> Any:
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``, which marks the answers for training and writes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: (now or datetime.now()).strftime(form)
    return environment


def _refuse(message: str) -> None:
    raise ValueError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
