"""Chat templates against transformers, which defines what they mean."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from qcompile.runtime.chat import ChatTemplate
from qcompile.runtime.errors import InputError

TALK = [
    {"role": "user", "content": " Grüße & <b>\n"},
    {"role": "assistant", "content": "ok"},
]
TEMPLATES = [
    "{% for m in messages %}{{ bos_token + m.role }}: {{ m['content'] | trim }}\n{% endfor %}",
    "{%- for m in messages -%}\n  {% if loop.last %}{% break %}{% endif %}\n{{ m | tojson }}{% endfor %}",
    "{% for m in messages %}\n    {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}!",
    "{{ messages | tojson(indent=2) }}{% if add_generation_prompt %}>{% endif %}{{ eos_token }}",
]


@pytest.mark.parametrize("source", TEMPLATES)
@pytest.mark.parametrize("answer", [False, True])
def test_as_transformers_renders(language_model: Path, source: str, answer: bool) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(language_model)
    expected = tokenizer.apply_chat_template(
        TALK, chat_template=source, tokenize=False, add_generation_prompt=answer
    )
    template = ChatTemplate(source, tokenizer.bos_token, tokenizer.eos_token)
    assert template.render(TALK, answer=answer) == expected


def test_the_present_can_be_fixed() -> None:
    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}")
    assert template.render(TALK, answer=True, now=datetime(2025, 1, 2)) == "02 January 2025"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('no system role') }}", "refuses the messages: no system role"),
        ("{% for %}", "refuses the messages: "),
        ("{{ messages.append(1) }}", "refuses the messages: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses the messages: "),
    ],
)
def test_refusals(source: str, message: str) -> None:
    pytest.importorskip("jinja2")
    with pytest.raises(InputError, match=message):
        ChatTemplate(source).render(TALK, answer=True)
