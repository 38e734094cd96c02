# ruff: noqa: RUF001, SIM905 (letters that look alike are wanted; lists of words are read best as text)
"""Texts that tell tokenizers apart: fixed pieces, combined at random but always in the same way.

What is in it follows the differences that were found between tokenizers before: white space of all kinds,
digits in runs, contractions, punctuation against letters, scripts without spaces, combining marks, emoji of
several code points, text of special tokens, bytes that are no UTF-8.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

MOST_CODE_POINTS = 12  # of one Unicode category
MOST_TOKENS = 200  # added tokens that are tried one by one

LANGUAGES = (
    "The quick brown fox jumps over the lazy dog.",
    "It's what we'd've said: they're, I'm, you'll, she'd; DON'T, WE'RE, I'LL",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis",
    "Falsches Üben von Xylophonmusik quält jeden größeren Zwerg",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia: ¿qué? ¡ñandú!",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig",
    "Pijamalı hasta yağız şoföre çabucak güvendi: İstanbul, ışık",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה",
    "صِف خَلقَ خَودِ كَمِثلِ الشَمسِ إِذ بَزَغَت ١٢٣",
    "हिन्दी में एक वाक्य, क्षत्रिय श्री १२३",
    "বাংলা ভাষায় একটি বাক্য",
    "தமிழ் மொழியில் ஒரு வாக்கியம்",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า ๑๒๓",
    "我能吞下玻璃而不伤身体。你好，世界！",
    "いろはにほへと ちりぬるを カタカナ、漢字。",
    "다람쥐 헌 쳇바퀴에 타고파",
    "Tiếng Việt có dấu: Trời đất mênh mông",
    "ქართული ენა, Հայերեն լեզու, አማርኛ ቋንቋ",
)
WHITE_SPACE = (
    " |  |   |    |                 |\t|\t\t|\n|\n\n|\n\n\n|\r\n|\r| \n|\n | \t \n|\t\n |\x0b|\x0c|\x85|\xa0"
    "|\u2002|\u2009|\u200b|\u2028|\u2029|\u3000|\ufeff|▁| ▁|▁▁"
).split("|")
DIGITS = (
    "0 7 42 007 123 1234 12345 1234567890 3.14159 1,000,000 1e-5 0x1F ² ½ ٣٤ Ⅻ ① 12:34:56 2026-11-21 50% "
    "$9.99 +1(555)010-9999"
).split()
EMOJI = ("😀 👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪 ❤️ ☺ 1️⃣ 🤷🏻\u200d♀️ 🫠 ©™").split()
PUNCTUATION = (
    "... !!! ?! — – “quoted” «so» (a) [b] {c} <d> / \\ | || @ # $ ^ && * _ __ ~ ` ' '' \" ; : , . … 、 。 ¿ "
    "'s 'S 't 'll 'LL 've 'd 'x ’s ''s = == += -> => <| |>"
).split()
CODE = (
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n",
    "for (int i = 0; i < n; ++i) {\n\t\ta[i] += b[i] * 2;\n\t}\n",
    '<div class="a">&nbsp;text</div>\n',
    "SELECT * FROM t WHERE id=42 AND name LIKE '%x%';",
    '{"key": [1, 2.5, null, true], "nested": {"a": "\\u00e9\\n"}}',
    "https://example.org/path?q=1&r=a%20b#frag user@mail.com C:\\dir\\file.txt",
    "#!/bin/sh\nls -la | grep '^d' > out.txt 2>&1\n",
    "camelCaseWords snake_case_words SCREAMING_CASE XMLHttpRequest2",
)
WORDS = (
    "a I the Hello WORLD iPhone naïve cafe\u0301 ﬁne Å ǅ ß ŉ x zz don't O'Neill e\u0301\u0302 \u0301 \u0000 "
    "\x7f \x1b[0m \ue000 \U0001f9ff 𝕏𝐲"
).split()
CLASSES: tuple[Sequence[str], ...] = (
    LANGUAGES,
    WHITE_SPACE,
    DIGITS,
    EMOJI,
    PUNCTUATION,
    CODE,
    WORDS,
)


def corpus(seed: int, count: int, tokens: Sequence[str]) -> list[str]:
    """Return texts: every piece alone and in context, every Unicode category, then random ones.

    Args:
        seed: The same seed gives the same texts.
        count: How many random texts.
        tokens: Added tokens, to be put into some of the texts.
    """
    source = random.Random(seed)
    pieces = [piece for group in CLASSES for piece in group]
    texts = ["", *pieces, *(f"a{piece}b" for piece in pieces), *(f" {piece} 1" for piece in pieces)]
    texts += [
        text for point in _code_points(source) for text in (point, f"a{point} {point}1{point}")
    ]
    texts += [text for token in tokens[:MOST_TOKENS] for text in _around(token)]
    texts += [_noise(source) for _ in range(count // 10)]
    texts += [_random_text(source, tokens) for _ in range(count)]
    return list(dict.fromkeys(texts))


def _code_points(source: random.Random) -> list[str]:
    """Return some code points of every category, of those that every version of Unicode puts into the same.

    Two tokenizers built with tables of different years read newer characters differently, and no file could
    change that.
    """
    groups: dict[str, list[str]] = {}
    for number in range(0x20000):
        name = unicodedata.category(character := chr(number))
        if name == unicodedata.ucd_3_2_0.category(character):
            groups.setdefault(name, []).append(character)
    found = (
        source.sample(members, min(MOST_CODE_POINTS, len(members)))
        for name, members in sorted(groups.items())
        if name not in ("Cs", "Cn")
    )
    return [character for members in found for character in members]


def _around(token: str) -> tuple[str, ...]:
    return (
        token,
        f"a{token}b",
        f"a {token} b",
        f"\n{token}\n",
        f"{token}{token}",
        token[:-1],
        f"{token}  x",
    )


def _noise(source: random.Random) -> str:
    data = bytes(source.randrange(256) for _ in range(source.randint(1, 24)))
    return data.decode("utf-8", errors="replace")


def _random_text(source: random.Random, tokens: Sequence[str]) -> str:
    pieces = []
    for _ in range(source.randint(2, 12)):
        group: Sequence[str] = source.choice(CLASSES)
        if tokens and source.random() < 0.05:
            group = tokens
        piece = source.choice(group)
        if len(piece) > 12 and source.random() < 0.8:  # a part of a sentence, cut anywhere
            start = source.randrange(len(piece))
            piece = piece[start : start + source.randint(1, 20)]
        pieces.append(piece)
    return source.choice(("", " ")).join(pieces)
