"""Text that both databases can store: no NUL, no lone surrogates."""

from __future__ import annotations

from collections.abc import Sequence

from taskd.model.errors import BadRequest


def sanitize(text: str | None) -> str:
    """The text without NUL and with ``?`` for each lone surrogate. Text of handlers may contain both."""
    return (text or "").replace("\0", "").encode("utf-8", "replace").decode()


def check_text(text: str) -> str:
    """The text, unchanged. Raises BadRequest for NUL and lone surrogates."""
    if "\0" in text:
        raise nul_refused()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest("text must be valid Unicode") from None
    return text


def nul_refused() -> BadRequest:
    """The error for a text with NUL."""
    return BadRequest("text must not contain the NUL character")


def join_lines(lines: Sequence[str]) -> str:
    """Lines of a log as one text; :func:`split_lines` reverses it."""
    return "\n".join([sanitize(line) for line in lines])


def split_lines(text: str) -> list[str]:
    """The lines that :func:`join_lines` has joined."""
    return text.split("\n")
