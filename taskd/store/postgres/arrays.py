"""Array literals: a column of a batch as one parameter, one string for psycopg2 to quote."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from taskd.model.errors import BadRequest


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

    Joined by NUL, which nothing storable contains, all texts are escaped in two passes.
    """
    if not values:
        return "{}"
    joined = "\0".join(values)
    if joined.count("\0") != len(values) - 1:
        raise BadRequest("text must not contain the NUL character")
    return '{"' + _escaped(joined).replace("\0", '","') + '"}'


def optional_texts(values: Sequence[str | None]) -> str:
    """``text[]`` with NULL for None; the texts hold no NUL."""
    return "{" + ",".join(["NULL" if v is None else f'"{_escaped(v)}"' for v in values]) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
