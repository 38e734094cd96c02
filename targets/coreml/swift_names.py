"""Names and strings of a model as Swift takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# "Keywords and Punctuation" of The Swift Programming Language, and what it treats alike as a member.
_KEYWORDS = _words("""
    associatedtype class deinit enum extension fileprivate func import init inout internal let open
    operator precedencegroup private protocol public rethrows static struct subscript typealias var
    break case catch continue default defer do else fallthrough for guard if in repeat return switch
    throw where while Any as async await false is nil self Self super throws true try Type Protocol
""")
# Functions of the package itself, which a member of the same name would hide.
_OWN = _words("qcompileFeatures qcompileOutput qcompilePixels")
# Types that the package uses; a model's type must not hide them.
_TYPES = _words("""
    Array Bool Bundle CGImage CVPixelBuffer Comparable CustomStringConvertible Data Dictionary Double
    Error Float Float16 Int Int8 Int32 MLComputeUnits MLDictionaryFeatureProvider MLFeatureProvider
    MLFeatureValue MLModel MLModelConfiguration MLShapedArray MLShapedArrayScalar NumberArray OSType
    String UInt8 URL VectorError VectorTests Vectors XCTestCase
""")


def type_name(name: str) -> str:
    """Return the name of a model's type: ``mobilenet-v2`` is ``MobilenetV2``."""
    words = re.findall(r"[0-9A-Za-z]+", name)
    joined = "".join(word[0].upper() + word[1:] for word in words)
    if not joined or joined[0].isdigit():
        joined = f"Model{joined}"
    return f"{joined}Net" if joined in _TYPES | _KEYWORDS else joined


def identifiers(names: Sequence[str]) -> list[str]:
    """Return a member's name for each name; no two are equal."""
    found: list[str] = []
    for name in names:
        plain = _identifier(name)
        candidates = (
            plain if count == 1 else f"{plain}_{count}" for count in range(1, 2 + len(found))
        )
        found.append(next(c for c in candidates if c not in found))
    return found


def literal(text: str) -> str:
    """Return a string literal of a text."""
    return f'"{"".join(map(_escaped, text))}"'


def _identifier(name: str) -> str:
    plain = re.sub(r"[^0-9A-Za-z_]", "_", name)
    if not plain or plain[0].isdigit():
        plain = f"_{plain}"
    return f"{plain}_" if plain in _KEYWORDS | _OWN or plain == "_" else plain


def _escaped(character: str) -> str:
    if character in '\\"':
        return f"\\{character}"
    return character if character.isprintable() else f"\\u{{{ord(character):x}}}"
