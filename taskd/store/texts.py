"""Texts as both databases take them."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.model.errors import BadRequest


def storable(text: str | None) -> str:
    """A text as both databases take it, without NUL and lone surrogates: what a handler says may hold anything."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def chunk_text(lines: Sequence[str]) -> str:
    """The text of a chunk of a log, from which :func:`chunk_lines` makes its lines again."""
    return "\n".join([storable(line) for line in lines])


def chunk_lines(text: str) -> list[str]:
    """The lines of a chunk of a log."""
    return text.split("\n")


def check_storable(text: str) -> str:
    """The text, unchanged. Raises BadRequest for NUL and lone surrogates, which no database takes."""
    if "\0" in text:
        raise BadRequest("text must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("text must be valid Unicode") from None
    return text
