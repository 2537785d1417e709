"""Array literals: one column of a batch as one string, which psycopg2 quotes as a single parameter."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from taskd.store.text import nul_refused


def numbers(values: Sequence[float]) -> str:
    """``int[]``, ``bigint[]`` or ``float8[]``"""
    return "{" + ",".join(map(str, values)) + "}"


def optional_numbers(values: Sequence[float | None]) -> str:
    """``float8[]`` with NULL for None"""
    return "{" + ",".join(["NULL" if v is None else str(v) for v in values]) + "}"


def optional_times(values: Sequence[datetime | None]) -> str:
    """``timestamptz[]`` with NULL for None"""
    return "{" + ",".join(["NULL" if v is None else v.isoformat() for v in values]) + "}"


def flags(values: Sequence[bool]) -> str:
    """``bool[]``"""
    return "{" + ",".join(["t" if v else "f" for v in values]) + "}"


def ids(values: Sequence[str]) -> str:
    """``uuid[]``"""
    return "{" + ",".join(values) + "}"


def texts(values: Sequence[str]) -> str:
    """``text[]`` or ``json[]``. Raises BadRequest for a text with NUL.

    The texts are joined by NUL, which none of them may contain, so that two passes escape all of them.
    """
    if not values:
        return "{}"
    joined = "\0".join(values)
    if joined.count("\0") != len(values) - 1:
        raise nul_refused()
    return '{"' + _escaped(joined).replace("\0", '","') + '"}'


def optional_texts(values: Sequence[str | None]) -> str:
    """``text[]`` with NULL for None. The texts must not contain NUL."""
    return "{" + ",".join(["NULL" if v is None else f'"{_escaped(v)}"' for v in values]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
