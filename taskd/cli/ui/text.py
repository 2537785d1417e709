"""Text on a terminal: measured in cells, cut, padded and coloured."""

from __future__ import annotations

import unicodedata

from taskd.model.visible import JOINERS


def width(text: str) -> int:
    """The terminal cells that a text takes after :func:`taskd.model.visible.visible` (Unicode Standard Annex 11)."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me") or c in JOINERS or "\u1160" <= c <= "\u11ff":
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """The text if it fits into that many cells, else its beginning and an ellipsis."""
    if width(text) <= cells:
        return text
    taken, kept = 0, 0
    for c in text:
        taken += _cells(c)
        if taken >= cells:
            break
        kept += 1
    return text[:kept] + "…" if cells > 0 else ""


def pad(text: str, cells: int) -> str:
    """The text with blanks up to that width."""
    return text + " " * max(0, cells - width(text))


def paint(text: str, colour: str | None) -> str:
    """The text in a colour (the parameter of SGR, ECMA-48), or as it is."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text
