"""Which characters a reader can see, and text with escapes for the others: for terminals and logs."""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Invisible, but they only shape the letters and emoji beside them."""

# Cc control, Cf invisible format (bidi overrides, zero width), Cs surrogate, Zl and Zp line ends, Cn unassigned
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Cn"})

_ESCAPED = _CATEGORIES - {"Cn"}

# Letters and marks without a glyph: Default_Ignorable_Code_Point outside of Cf, and the empty Braille pattern
_WITHOUT_GLYPH = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def is_invisible(character: str) -> bool:
    """Whether this character shows as nothing. White space within a line is not counted as invisible."""
    return unicodedata.category(character) in _CATEGORIES or _WITHOUT_GLYPH.match(character) is not None


def has_visible(text: str) -> bool:
    """Whether any character of the text is neither white space nor invisible."""
    return any("!" <= c <= "~" or not (c.isspace() or is_invisible(c)) for c in text)


def visible(text: str) -> str:
    """One line of text, with an escape such as ``\\x1b`` for each character that could control a terminal, break
    the line or change the order of what is shown."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def visible_lines(text: str) -> str:
    """The same for a text of several lines: line feeds and tabs stay."""
    plain = text.replace("\n", "").replace("\t", "")
    if plain.isascii() and plain.isprintable():
        return text
    return "".join(c if c in "\n\t" else _shown(c) for c in text)


def _shown(c: str) -> str:
    if c in JOINERS or unicodedata.category(c) not in _ESCAPED:
        return c
    return c.encode("unicode_escape").decode()
