"""In which scripts a text is written.

``unicodedata`` does not have Unicode's Script property. Here a letter's script is the first word of its Unicode name,
``CYRILLIC SMALL LETTER A`` for example, with the exceptions below. This does not tell apart scripts whose names begin
with the same word: Old Italic and Old Turkic, Linear A and Linear B, Tai Le and Tai Viet. Digits, punctuation, symbols,
white space and combining marks such as accents belong to all scripts, also the digits of other scripts. A whole word of
one script that looks like a word of another is not found.
"""

from __future__ import annotations

import unicodedata

_EXCEPTIONS: dict[str, str | None] = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    # these belong to several scripts
    "COMBINING": None,
    "MODIFIER": None,
    "KATAKANA-HIRAGANA": None,
    "VERTICAL": None,
}

_WRITTEN_TOGETHER = (
    frozenset({"Han", "Hiragana", "Katakana"}),
    frozenset({"Han", "Hangul"}),
    frozenset({"Han", "Bopomofo"}),
)


def mixed_scripts(text: str) -> tuple[str, str] | None:
    """The first two scripts of the text that no language writes together, None if there are none. The text is in
    NFKC: then no letter has a name such as ``FULLWIDTH LATIN SMALL LETTER A``."""
    found: dict[str, None] = {}
    for character in text:
        script = _script_of(character)
        if script is None or script in found:
            continue
        for other in found:
            if not any({script, other} <= together for together in _WRITTEN_TOGETHER):
                return other, script
        found[script] = None
    return None


def _script_of(character: str) -> str | None:
    """The script of a letter or of a mark that only one script has; None for what all scripts have."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    word = unicodedata.name(character, "").partition(" ")[0]
    return _EXCEPTIONS.get(word, word.title() or None)
