"""Makes any text fit for a database and for one line of a terminal. Child processes import it: it uses no Twisted."""

from __future__ import annotations

import re

from taskd.model.limits import MAX_ERROR_CHARS, MAX_TRACE_CHARS

# C0 except tab, DEL, C1, and the two line separators of Unicode, which break lines where they are shown
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a character, which no database can store."""

_UNSTORABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_CUT = "\n  ...\n"


def clean_line(text: str, limit: int, gap: str = "") -> str:
    """One line of at most ``limit`` characters: ``gap`` replaces each control character except tab, and U+FFFD each
    lone surrogate."""
    line = _CONTROL.sub(gap, text[: 2 * limit])[:limit]
    return line if line.isascii() else SURROGATE.sub("\ufffd", line)


def one_line(text: str, limit: int = MAX_ERROR_CHARS) -> str:
    """A text with its line breaks and runs of blanks as single spaces, cut to ``limit`` characters. U+FFFD replaces
    control characters and lone surrogates."""
    line = _UNSTORABLE.sub("\ufffd", " ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def cut_trace(text: str) -> str:
    """A traceback, or another text of several lines, of at most MAX_TRACE_CHARS: the middle is cut, because the ends
    say most. U+FFFD replaces control characters except tab and newline, and lone surrogates."""
    if len(text) > MAX_TRACE_CHARS:
        half = (MAX_TRACE_CHARS - len(_CUT)) // 2
        text = text[:half] + _CUT + text[-half:]
    return _UNSTORABLE.sub("\ufffd", text)
