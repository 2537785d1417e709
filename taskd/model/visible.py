"""Which characters a reader can see."""

from __future__ import annotations

import re
import unicodedata

# Cc control, Cf invisible format (bidi overrides, zero width), Cs surrogate, Zl and Zp line ends, Cn unassigned
_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Cn"})

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
